"""SimCLR: two views of an image attract, all other images repel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.functional import nt_xent
from fastssl.methods.base import Method


class SimCLR(Method):
    """A Simple Framework for Contrastive Learning of Visual Representations.

    ``h = f(x)``, ``z = g(h)``; NT-Xent on z; h is what downstream tasks use.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; see :func:`fastssl.nn.projection_head`.
        temperature: of NT-Xent, positive; 0.1 on ImageNet, 0.5 on CIFAR-10 in the paper.

    Chen et al. 2020, https://arxiv.org/abs/2002.05709
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, temperature: float = 0.5) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.temperature = temperature

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of every view, [N, D] each, in one pass: batch norm sees all views together."""
        h = self.encoder(torch.cat(views))  # [V·N, F]
        z = self.head(h)  # [V·N, D]
        return z.chunk(len(views))

    def loss(self, *embeddings: Tensor) -> Tensor:
        """NT-Xent of z0 and z1, [N, D] each; a float32 scalar."""
        z0, z1 = embeddings
        return nt_xent(z0, z1, self.temperature, **self.over)

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of two batches of views, [N, C, H, W] each; row i of both is one image."""
        z0, z1 = self.embed(*views)
        return self.loss(z0, z1)
