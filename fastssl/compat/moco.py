"""The MoCo repository's ``moco/builder.py``: the same model and checkpoints, but a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.distributed import agree
from fastssl.functional import info_nce
from fastssl.nn import shuffled

__all__ = ["MoCo"]


class MoCo(nn.Module):
    """MoCo whose ``forward`` returns the loss, not logits and labels.

    The original returns logits [N, 1 + K] for a cross entropy; here they are never written. In a
    training script two lines become one::

        output, target = model(im_q=images[0], im_k=images[1])
        loss = criterion(output, target)

        loss = model(im_q=images[0], im_k=images[1])

    Constructor, parameters, buffers and their initial values from a seed are the original's, and so
    are checkpoints, in both directions. Several processes share a queue and shuffle their batches;
    one process needs no process group. A batch may have any size, not only divisors of K.

    Args:
        base_encoder: makes an encoder, called with ``num_classes=dim``.
        dim: D.
        K: keys in the queue.
        m: of ``θ_k ← m·θ_k + (1 − m)·θ_q``, before each step's keys are made.
        T: temperature.
        mlp: put a hidden layer before the encoders' ``fc``.

    Attributes:
        queue: normalised keys, shape [D, K] as in the original, one after another in memory.
        queue_ptr: int64, shape [1]: where the next key goes.

    He et al. 2020, https://arxiv.org/abs/1911.05722
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
    ) -> None:
        super().__init__()
        self.K, self.m, self.T = K, m, T
        self.encoder_q = base_encoder(num_classes=dim)
        self.encoder_k = base_encoder(num_classes=dim)
        if mlp:
            encoder: Any
            for encoder in (self.encoder_q, self.encoder_k):
                width = encoder.fc.in_features
                encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)
        with torch.no_grad():
            torch._foreach_copy_(*self._weights())
        self.encoder_k.requires_grad_(False)
        queue = F.normalize(torch.randn(dim, K), dim=0)
        self.register_buffer("queue", queue.T.contiguous().T)  # a loss reads keys, not features
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    def forward(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """The mean loss of two batches of views, row i of both of one image; a float32 scalar.

        Afterwards the keys of im_k, and those of other ranks, are in the queue.
        """
        q = self.encoder_q(im_q).to(self.queue.dtype)  # [N, D]
        with torch.no_grad():
            torch._foreach_lerp_(*self._weights(), 1 - self.m)
            k = F.normalize(shuffled(self.encoder_k, im_k, True).to(self.queue.dtype))  # [N, D]
        loss = info_nce(q, k, self.queue.T, self.T)
        self._enqueue(k)
        return loss

    def _weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """θ_k and θ_q: parameters alone, each encoder has batch statistics of its own."""
        return list(self.encoder_k.parameters()), list(self.encoder_q.parameters())

    @torch.no_grad()
    def _enqueue(self, k: Tensor) -> None:
        """Put the keys of all ranks in the place of the oldest; of more than K, the last K."""
        k = agree(True, False, lambda k: None, k=k).gather(k)
        count = len(k)
        kept = torch.arange(max(count - self.K, 0), count, device=k.device)
        self.queue.T.index_copy_(0, (self.queue_ptr + kept) % self.K, k[kept])
        self.queue_ptr.add_(count).remainder_(self.K)
