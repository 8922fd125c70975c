"""VICReg: views agree, every feature varies, and no two vary together."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import vicreg_loss
from fastssl.methods.base import Method


class VICReg(Method):
    """VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning.

    ``z = g(f(x))`` of both views; their squared distance, a hinge on each feature's deviation, and
    the squares of the covariances.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "expander" in the paper, of width 8192.
        invariance, variance, covariance: weights of the three.

    Bardes et al. 2022, https://arxiv.org/abs/2105.04906
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.weights = (invariance, variance, covariance)

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of each view, [N, D]; batch norm sees the views apart."""
        return tuple(self.head(self.encoder(x)) for x in views)

    def loss(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Of z of both views, [N, D] each; a float32 scalar."""
        return vicreg_loss(z0, z1, *self.weights, group=self.group)
