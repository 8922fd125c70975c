"""Losses of a prediction and its target: BYOL's and SimSiam's."""

from __future__ import annotations

from torch import Tensor

from fastssl.distributed import Group, Local, agree
from fastssl.functional.common import Reduction, check_alike, cosines, loss_dtype, reduce


def byol_loss(
    p0: Tensor,  # [N, D]
    p1: Tensor,  # [N, D]
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    *,
    reduction: Reduction = "mean",
    group: Group = None,
) -> Tensor:
    """BYOL: each view's prediction should be the other view's target, up to length.

    ``loss_i = ‖p̄0_i − z̄1_i‖² + ‖p̄1_i − z̄0_i‖² = 4 − 2·cos(p0_i, z1_i) − 2·cos(p1_i, z0_i)``, with
    ``x̄ = x/‖x‖``: the sum of both directions, as in the paper.

    Args:
        p0: predictions from the first view, shape [N, D]; float32, bfloat16, float16 or float64.
        p1: predictions from the second view, same shape, dtype and device; row i of all four is
            one sample.
        z0: targets from the first view; they receive no gradient.
        z1: targets from the second view; likewise.
        reduction: "mean" over the N samples, "sum", or "none" for shape [N].
        group: a process group, or True for the default one: the mean or sum is over the samples of
            all its ranks; see :mod:`fastssl.distributed`.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [N]; cosines are taken in float64. A
        zero vector has cosine 0 with everything, and receives no gradient. NaN or infinite inputs
        give NaN.

    Raises:
        TypeError: the tensors are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, the batch is empty, the reduction is unknown, the
            ranks of a group disagree.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733
    """
    ranks = _agree(group, p0=p0, p1=p1, z0=z0, z1=z1)
    loss = 4 - 2 * cosines(p0, z1.detach()) - 2 * cosines(p1, z0.detach())  # [N]
    return reduce(loss, reduction, ranks=ranks).to(loss_dtype(p0))


def simsiam_loss(
    p0: Tensor,  # [N, D]
    p1: Tensor,  # [N, D]
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    *,
    reduction: Reduction = "mean",
    group: Group = None,
) -> Tensor:
    """SimSiam: ``loss_i = −½·cos(p0_i, z1_i) − ½·cos(p1_i, z0_i)``, no gradient reaching z.

    Args:
        p0, p1, z0, z1, reduction, group: as of :func:`byol_loss`, of which it is a quarter, less 1.

    Returns:
        As :func:`byol_loss`.

    Raises:
        TypeError, ValueError: as :func:`byol_loss`.

    Chen and He 2021, https://arxiv.org/abs/2011.10566
    """
    ranks = _agree(group, p0=p0, p1=p1, z0=z0, z1=z1)
    loss = -(cosines(p0, z1.detach()) + cosines(p1, z0.detach())) / 2  # [N]
    return reduce(loss, reduction, ranks=ranks).to(loss_dtype(p0))


def negative_cosine_similarity(
    p: Tensor,  # [N, D]
    z: Tensor,  # [N, D]
    *,
    reduction: Reduction = "mean",
    group: Group = None,
) -> Tensor:
    """``loss_i = −cos(p_i, z_i)``: one direction of SimSiam's loss; both p and z receive gradients.

    Args:
        p: predictions, shape [N, D]; float32, bfloat16, float16 or float64.
        z: targets, same shape, dtype and device; detach them where they are to stay.
        reduction, group: as of :func:`byol_loss`.

    Returns:
        As :func:`byol_loss`.

    Raises:
        TypeError, ValueError: as :func:`byol_loss`.

    Chen and He 2021, https://arxiv.org/abs/2011.10566
    """
    ranks = _agree(group, p=p, z=z)
    return reduce(-cosines(p, z), reduction, ranks=ranks).to(loss_dtype(p))


def _agree(group: Group, **embeddings: Tensor) -> Local:
    return agree(group, False, check_alike, **embeddings)
