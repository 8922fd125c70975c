"""MoCo: a query finds its key among those of the last batches."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import info_nce
from fastssl.methods.base import Method
from fastssl.nn import MemoryQueue, MomentumEncoder, shuffled, split_batch_norm


class MoCo(Method):
    """Momentum Contrast for Unsupervised Visual Representation Learning, versions 1 and 2.

    ``q = g(f(x_q))``, ``k = g_k(f_k(x_k))``; InfoNCE of q, its k, and the K keys before; then f_k
    follows f slowly, and k enters the queue. Version 2 has a better head and stronger views.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]: "linear" in version 1, "mlp" in version 2 (see
            :func:`fastssl.nn.projection_head`).
        dim: D.
        queue_size: K.
        key_momentum: m of ``θ_k ← m·θ_k + (1 − m)·θ_q``.
        temperature: of InfoNCE, positive; 0.07 in version 1, 0.2 in version 2.
        bn_splits: groups of a batch that are normalised apart, as on so many devices; above 1 the
            batch norms of encoder and head are replaced.

    He et al. 2020, https://arxiv.org/abs/1911.05722; Chen et al. 2020,
    https://arxiv.org/abs/2003.04297
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 128,
        queue_size: int = 65_536,
        key_momentum: float = 0.999,
        temperature: float = 0.2,
        bn_splits: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder if bn_splits == 1 else split_batch_norm(encoder, bn_splits)
        self.head = head if bn_splits == 1 else split_batch_norm(head, bn_splits)
        self.key_encoder = MomentumEncoder(self.query_encoder)
        self.key_momentum = key_momentum
        self.queue = MemoryQueue(queue_size, dim)
        self.temperature = temperature

    @property
    def query_encoder(self) -> nn.Sequential:
        """g∘f."""
        return nn.Sequential(self.encoder, self.head)

    def embed(self, x_q: Tensor, x_k: Tensor) -> tuple[Tensor, ...]:
        """q, [N, D]."""
        return (self.query_encoder(x_q),)

    def targets(self, x_q: Tensor, x_k: Tensor, chunk_size: int | None = None) -> tuple[Tensor]:
        """k, [N, D], batch norm seeing images in another order, and other ranks'."""
        return (shuffled(lambda rows: self.key_encoder(rows, chunk_size), x_k, self.group),)

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """InfoNCE of q and k, [N, D] each, with the queue as negatives; a float32 scalar."""
        q, k = q.to(self.queue.rows.dtype), k.to(self.queue.rows.dtype)
        return info_nce(q, k, self.queue.rows, self.temperature, group=self.group)

    def after_step(self, q: Tensor, k: Tensor) -> None:
        """f_k follows f; k enters the queue."""
        self.key_encoder.follow(self.query_encoder, self.key_momentum)
        self.queue.enqueue(k, group=self.group)
