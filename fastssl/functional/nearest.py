"""InfoNCE with nearest neighbours as positives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.common import (
    Reduction,
    check_alike,
    check_companion,
    check_temperature,
    inverse_temperature,
    pair_loss,
)
from fastssl.ops import similarity_topk


def nnclr(
    prediction: Tensor,  # [N, D]
    projection: Tensor,  # [N, D]
    queue: Tensor,  # [K, D]
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """InfoNCE whose positives are the nearest neighbours, in a queue, of the other view.

    ``loss_i = −log( e^{s_ii} / Σ_j e^{s_ij} )`` with ``s_ij = cos(n_i, p_j) / temperature`` and
    ``n_i`` the entry of the queue most similar to ``projection_i``: each neighbour is to tell its
    own prediction from those of the rest of the batch. Neither matrix, of similarities to the queue
    or within the batch, is written.

    Args:
        prediction: p, of one view, shape [N, D]; float32, bfloat16 or float16.
        projection: of the other view, same shape, dtype and device; row i of both is one sample. It
            receives no gradient.
        queue: projections of earlier samples, shape [K, D], dtype and device of prediction.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        normalize: use cosine similarity; False: plain dot products.
        reduction: "mean" over the N samples, "sum", or "none" for shape [N].
        group: a process group, or True for the default one: the batch is that of all its ranks, and
            "none" gives this rank's rows; see :mod:`fastssl.distributed`.
        ring: with a group, pass predictions around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [N]. With N = 1 the loss is 0. NaN or
        infinite embeddings give NaN.

    Raises:
        TypeError: the tensors are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, the batch or the queue is empty, the temperature is
            not positive, the reduction is unknown, the ranks of a group disagree.

    NNCLR, Dwibedi et al. 2021, https://arxiv.org/abs/2104.14548
    """
    ranks = agree(
        group,
        ring,
        _check,
        prediction=prediction,
        projection=projection,
        queue=queue,
        temperature=temperature,
    )
    _, nearest = similarity_topk(projection, queue, 1, normalize=normalize)  # [N, 1]
    neighbours = queue.detach()[nearest[:, 0]]  # [N, D]
    own: dict[str, Any] = {"normalize": normalize, "pair_offset": 0, "exclude_pair": True}
    scale = inverse_temperature(temperature)
    negatives, positive = ranks.similarity_lse(neighbours, prediction, scale, **own)
    return pair_loss(positive, negatives, reduction=reduction, ranks=ranks, like=prediction)


def _check(
    prediction: Tensor, projection: Tensor, queue: Tensor, temperature: float | Tensor
) -> None:
    check_alike(prediction=prediction, projection=projection)
    check_temperature(temperature)
    check_companion("queue", queue, "prediction", prediction)
    width = prediction.shape[1]
    if queue.dim() != 2 or queue.shape[1] != width or len(queue) == 0:
        raise ValueError(f"queue must have shape [K, {width}], not {list(queue.shape)}")
