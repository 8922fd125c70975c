"""Barlow Twins: features agree between views, and no two say the same."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import barlow_twins_loss
from fastssl.methods.base import Method


class BarlowTwins(Method):
    """Barlow Twins: Self-Supervised Learning via Redundancy Reduction.

    ``z = g(f(x))`` of both views; the cross-correlation of their features over the batch should be
    the identity.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "expander" in the paper, of width 8192.
        lambd: weight of the off-diagonal terms.

    Zbontar et al. 2021, https://arxiv.org/abs/2103.03230
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, *, lambd: float = 5.1e-3) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.lambd = lambd

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of each view, [N, D]; batch norm sees the views apart."""
        return tuple(self.head(self.encoder(x)) for x in views)

    def loss(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Of z of both views, [N, D] each; a float32 scalar."""
        return barlow_twins_loss(z0, z1, self.lambd, group=self.group)
