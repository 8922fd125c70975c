"""NNCLR: the positive is the nearest neighbour of the other view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.functional import nnclr
from fastssl.methods.base import Method
from fastssl.nn import MemoryQueue, prediction_head


class NNCLR(Method):
    """With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning.

    ``z = g(f(x))``, ``p = h(z)`` of both views; the nearest neighbour of z, in a queue of earlier
    ones, is to tell p of the other view from those of other images.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; of 3 layers in the paper.
        dim: D.
        queue_size: K.
        predictor_hidden: width inside the predictor h.
        temperature: positive.

    Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 256,
        queue_size: int = 98_304,
        predictor_hidden: int = 4096,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.predictor = prediction_head(dim, predictor_hidden)
        self.queue = MemoryQueue(queue_size, dim)
        self.temperature = temperature

    def embed(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, ...]:
        """p0, p1, z0 and z1, [N, D] each."""
        z = self.head(self.encoder(torch.cat([x0, x1])))  # [2N, D]
        return (*self.predictor(z).chunk(2), *z.chunk(2))

    def loss(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The mean over both views of p, beside the other's neighbours; a float32 scalar."""
        p0, p1, z0, z1 = (x.to(self.queue.rows.dtype) for x in (p0, p1, z0, z1))
        loss = nnclr(p0, z1, self.queue.rows, self.temperature, **self.over)
        return (loss + nnclr(p1, z0, self.queue.rows, self.temperature, **self.over)) / 2

    def after_step(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> None:
        """One view's z enter the queue."""
        self.queue.enqueue(z0, group=self.group)
