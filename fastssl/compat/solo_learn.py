"""solo-learn's loss functions (``solo.losses``), as of version 1.0.6."""

from __future__ import annotations

from torch import Tensor

from fastssl.functional import (
    barlow_twins_loss,
    info_nce,
    multi_view_nt_xent,
    negative_cosine_similarity,
    vicreg_loss,
)
from fastssl.functional.common import cosines, loss_dtype

__all__ = [
    "barlow_loss_func",
    "byol_loss_func",
    "mocov2plus_loss_func",
    "nnclr_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
    "vicreg_loss_func",
]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent over any number of views; see :func:`fastssl.functional.multi_view_nt_xent`.

    Args:
        z: shape [M, D], not normalised.
        indexes: shape [M]: rows with the same number are positives of one another. A row alone
            does not count, where solo-learn's loss is infinite.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each. All rows with
    one number are then on one rank: classes across ranks, which solo-learn takes, are an error.
    """
    return multi_view_nt_xent(z, indexes, temperature, group=True)


def mocov2plus_loss_func(
    query: Tensor,  # [N, D]
    key: Tensor,  # [N, D]
    queue: Tensor,  # [D, K]
    temperature: float = 0.1,
) -> Tensor:
    """InfoNCE with a queue of negatives; see :func:`fastssl.functional.info_nce`.

    Args:
        query, key: shape [N, D], normalised; row i of both belongs together.
        queue: shape [D, K], a negative in each column, normalised. Columns are copied into rows,
            unless they lie so: a queue made as ``torch.empty(K, D).T`` costs no copy.
        temperature: positive float.
    """
    key, queue = key.to(query.dtype), queue.to(query.dtype)
    return info_nce(query, key, queue.T, temperature, normalize=False)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of neighbours among the batch's predictions; see :func:`fastssl.functional.info_nce`.

    Args:
        nn: the queue's nearest neighbour of each sample of one view, shape [N, D].
        p: predictions for the other view, same shape; neither need be normalised.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each.
    """
    return info_nce(nn, p, temperature=temperature, group=True)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``2 − 2·mean cos(p, z)``, one direction of :func:`fastssl.functional.byol_loss`.

    Args:
        p: predictions, shape [N, D].
        z: targets, same shape; they receive no gradient.
        simplified: one of two ways to the same number; not looked at.
    """
    return (2 - 2 * cosines(p, z.detach()).mean()).to(loss_dtype(p))


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``−mean cos(p, z)``, one direction of :func:`fastssl.functional.simsiam_loss`.

    Args:
        p: predictions, shape [N, D].
        z: targets, same shape; they receive no gradient.
        simplified: one of two ways to the same number; not looked at.
    """
    return negative_cosine_similarity(p, z.detach().to(p.dtype))


def barlow_loss_func(
    z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025
) -> Tensor:
    """``scale_loss`` times :func:`fastssl.functional.barlow_twins_loss`.

    Args:
        z1, z2: features of both views, shape [N, D], N ≥ 2.
        lamb: weight of the off-diagonal terms.
        scale_loss: of the whole.

    Over the batch of all ranks where there are several, means and variances as well, which
    solo-learn takes over each rank's own rows.
    """
    return scale_loss * barlow_twins_loss(z1, z2, lamb, group=True)


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> Tensor:
    """VICReg's loss; see :func:`fastssl.functional.vicreg_loss`.

    Args:
        z1, z2: features of both views, shape [N, D], N ≥ 2.
        sim_loss_weight: of the invariance.
        var_loss_weight: of the *sum* of both views' hinges, which the authors' code halves.
        cov_loss_weight: of the covariance.

    Over the batch of all ranks where there are several, its mean the same on each.
    """
    weights = sim_loss_weight, 2 * var_loss_weight, cov_loss_weight
    return vicreg_loss(z1, z2, *weights, group=True)
