"""Losses of methods without negatives, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.distributed import Group
from fastssl.functional import barlow_twins_loss, byol_loss, simsiam_loss, vicreg_loss


class BYOLLoss(nn.Module):
    """BYOL's loss, both directions summed: ``BYOLLoss()(p0, p1, z0, z1)``.

    See :func:`fastssl.functional.byol_loss` for the formula, shapes, dtypes and errors.

    Args:
        group: as of the function.
    """

    def __init__(self, *, group: Group = None) -> None:
        super().__init__()
        self.group = group

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The mean over samples; predictions p and targets z of shape [N, D]."""
        return byol_loss(p0, p1, z0, z1, group=self.group)


class SimSiamLoss(nn.Module):
    """SimSiam's loss: ``SimSiamLoss()(p0, p1, z0, z1)``.

    See :func:`fastssl.functional.simsiam_loss` for the formula, shapes, dtypes and errors.

    Args:
        group: as of the function.
    """

    def __init__(self, *, group: Group = None) -> None:
        super().__init__()
        self.group = group

    def forward(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """The mean over samples; predictions p and targets z of shape [N, D]."""
        return simsiam_loss(p0, p1, z0, z1, group=self.group)


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins' loss: ``BarlowTwinsLoss(lambd=5e-3)(z0, z1)``.

    See :func:`fastssl.functional.barlow_twins_loss` for the formula, shapes, dtypes and errors.

    Args:
        lambd: weight of the off-diagonal terms.
        eps: positive, added to the variances.
        group: as of the function.
    """

    def __init__(self, lambd: float = 5e-3, *, eps: float = 1e-5, group: Group = None) -> None:
        super().__init__()
        self.lambd, self.eps, self.group = lambd, eps, group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1 of shape [N, D]."""
        return barlow_twins_loss(z0, z1, self.lambd, eps=self.eps, group=self.group)

    def extra_repr(self) -> str:
        return f"lambd={self.lambd}, eps={self.eps}"


class VICRegLoss(nn.Module):
    """VICReg's loss: ``VICRegLoss(invariance=25, variance=25, covariance=1)(z0, z1)``.

    See :func:`fastssl.functional.vicreg_loss` for the formula, shapes, dtypes and errors.

    Args:
        invariance, variance, covariance: weights of the three terms.
        eps: positive, added to the variances.
        group: as of the function.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        eps: float = 1e-4,
        *,
        group: Group = None,
    ) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.eps, self.group = eps, group

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """z0, z1 of shape [N, D]."""
        weights = self.invariance, self.variance, self.covariance
        return vicreg_loss(z0, z1, *weights, self.eps, group=self.group)

    def extra_repr(self) -> str:
        return (
            f"invariance={self.invariance}, variance={self.variance}, "
            f"covariance={self.covariance}, eps={self.eps}"
        )
