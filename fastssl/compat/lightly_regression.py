"""The losses without negatives of ``lightly.loss``, as of lightly 1.6."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.functional import barlow_twins_loss, vicreg_loss
from fastssl.functional.common import loss_dtype, widened


class NegativeCosineSimilarity(nn.Module):
    """``−mean cos(x0, x1)``: ``NegativeCosineSimilarity()(x0, x1)``.

    See :func:`fastssl.functional.negative_cosine_similarity`. Both receive gradients: detach the
    target. Cosines are taken in float64, also of half precision.

    Args:
        dim: of the features.
        eps: norms count as at least this.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x0: Tensor, x1: Tensor) -> Tensor:
        """x0, x1 of one shape, or shapes that broadcast; a float32 scalar (float64 for float64)."""
        cosines = F.cosine_similarity(widened(x0), widened(x1), self.dim, self.eps)
        return -cosines.mean().to(loss_dtype(x0))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"


class BarlowTwinsLoss(nn.Module):
    """Barlow Twins' loss: ``BarlowTwinsLoss(lambda_param=5e-3)(z_a, z_b)``.

    See :func:`fastssl.functional.barlow_twins_loss`.

    Args:
        lambda_param: weight of the off-diagonal terms.
        gather_distributed: means, variances and correlations over the batch of all ranks; lightly
            takes the correlations over all, but means and variances over each rank's own rows.
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False) -> None:
        super().__init__()
        self.lambda_param = lambda_param
        self.gather_distributed = gather_distributed

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """z_a, z_b of shape [N, D], N ≥ 2; a float32 scalar."""
        return barlow_twins_loss(z_a, z_b, self.lambda_param, group=self.gather_distributed)

    def extra_repr(self) -> str:
        return f"lambda_param={self.lambda_param}"


class VICRegLoss(nn.Module):
    """VICReg's loss: ``VICRegLoss(lambda_param=25, mu_param=25, nu_param=1)(z_a, z_b)``.

    See :func:`fastssl.functional.vicreg_loss`; what lightly asserts is a ValueError.

    Args:
        lambda_param, mu_param, nu_param: weights of invariance, variance and covariance.
        gather_distributed: over the batch of all ranks, the mean the same on each (lightly's
            invariance is over a rank's own rows: another number, the same step).
        eps: added to the variances.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ) -> None:
        super().__init__()
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.gather_distributed = gather_distributed
        self.eps = eps

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """z_a, z_b of shape [N, D], N ≥ 2, or [N, ..., D]: the mean over places; a float32
        scalar."""
        if z_a.dim() < 3 or z_a.shape != z_b.shape:
            return self._loss(z_a, z_b)
        places = zip(*(z.flatten(1, -2).unbind(1) for z in (z_a, z_b)), strict=True)
        return torch.stack([self._loss(*pair) for pair in places]).mean()

    def _loss(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        weights = self.lambda_param, self.mu_param, self.nu_param
        return vicreg_loss(z_a, z_b, *weights, self.eps, group=self.gather_distributed)

    def extra_repr(self) -> str:
        return (
            f"lambda_param={self.lambda_param}, mu_param={self.mu_param}, "
            f"nu_param={self.nu_param}, eps={self.eps}"
        )
