"""KoLeo: features are to spread, by the distance to their nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.common import check_alike, loss_dtype, widened
from fastssl.ops import similarity_topk
from fastssl.reference import unit_rows


def koleo_loss(
    features: Tensor,  # [N, D]
    eps: float = 1e-8,
    *,
    group: Group = None,
) -> Tensor:
    """The differential entropy of a batch by Kozachenko and Leonenko's estimator, as DINOv2 has it.

    ``−mean_i log( ‖x_i − x_j + eps‖ + eps )`` with x the rows divided by their lengths and x_j the
    row nearest to x_i, never x_i itself. The matrix of similarities is not written. The gradient
    flows to both rows of a pair.

    Args:
        features: shape [N, D], N at least 2; float32, bfloat16 or float16; not normalised.
        eps: positive float; keeps equal rows at a finite loss.
        group: a process group, or True for the default one: the batch, and the neighbours, are
            those of all its ranks; see :mod:`fastssl.distributed`. DINOv2's are a rank's own.

    Returns:
        A float32 scalar (float64 for float64 inputs); distances are computed in float64. A row
        shorter than 1e-12 counts as zero and receives no gradient. NaN or infinite features give
        NaN.

    Raises:
        TypeError: features are not a floating-point tensor.
        ValueError: another shape, fewer than two rows, eps is not positive, ranks of a
            group that disagree.

    Sablayrolles et al. 2019, https://arxiv.org/abs/1806.03198;
    DINOv2, Oquab et al. 2023, https://arxiv.org/abs/2304.07193
    """
    ranks = agree(group, False, _check, features=features, eps=eps)
    everyone = ranks.columns(features)  # [M, D], this rank's first
    if len(everyone) < 2:
        raise ValueError("features must hold at least two rows: one has no neighbour")
    with torch.no_grad():
        _, nearest = similarity_topk(features, everyone, 2, normalize=True)  # [N, 2]
        itself = torch.arange(len(features), device=features.device)
        # Of equal rows only the first two are anybody's nearest, perhaps not the row itself.
        neighbour = torch.where(nearest[:, 0] == itself, nearest[:, 1], nearest[:, 0])
    x, y = unit_rows(widened(features)), unit_rows(widened(everyone[neighbour]))
    distance = torch.linalg.vector_norm(x - y + eps, dim=1)
    return -ranks.mean((distance + eps).log()).to(loss_dtype(features))


def _check(features: Tensor, eps: float) -> None:
    check_alike(features=features)
    if not eps > 0:
        raise ValueError(f"eps must be positive, not {eps}")
