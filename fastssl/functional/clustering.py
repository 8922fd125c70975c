"""Assignments to prototypes that use all of them alike."""

from __future__ import annotations

from torch import Tensor

from fastssl import ops
from fastssl.distributed import Group, Local, agree
from fastssl.ops.sinkhorn import check


def sinkhorn(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    group: Group = None,
) -> Tensor:
    """Assign samples to prototypes, softly, such that each prototype receives as much as any other.

    ``Q = diag(α) exp(scores / ε) diag(β)`` whose columns (prototypes) and then rows (samples) are
    normalised in turn, ``iterations`` times: what SwAV and DINOv2 compute, at any number of
    iterations. It is computed as ``Q_bk = exp(scores_bk / ε − u_b − v_k)`` from logarithms, of
    which none overflows or vanishes, over ``iterations + 1`` passes of the scores.

    Args:
        scores: shape [B, K], samples and prototypes, such as cosine similarities; float32,
            bfloat16, float16 or float64. They receive no gradient. −inf forbids a pair, whose
            ``Q_bk`` is 0, and a column of nothing else is left out. NaN or +inf anywhere, or a row
            of nothing but −inf, gives NaN.
        epsilon: positive float, the temperature.
        iterations: at least 1.
        group: a process group, or True for the default one: the batch is that of all its ranks,
            each of any number of rows, and the result is for this rank's; see
            :mod:`fastssl.distributed`. An iteration reduces one vector [K].

    Returns:
        Q, shape [B, K], rows that sum to 1: float32 (float64 for float64 scores). Exponentials are
        float32, potentials and their differences exact to float32 of the result: rows are within
        total variation 1e-5 of the exact ones for ``scores / ε`` up to ±1e6.

    Raises:
        TypeError: scores are no floating-point tensor, epsilon no number, iterations no int.
        ValueError: scores that are not [B, K] or empty, epsilon not positive, no iteration, ranks
            of a group that disagree.

    Sinkhorn Distances, Cuturi 2013, https://arxiv.org/abs/1306.0895;
    SwAV, Caron et al. 2020, https://arxiv.org/abs/2006.09882
    """
    ranks = agree(group, False, check, scores=scores, epsilon=epsilon, iterations=iterations)
    return ops.sinkhorn(scores, epsilon, iterations, join=ranks.join)


def sinkhorn_potentials(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    group: Group = None,
) -> tuple[Tensor, Tensor]:
    """The potentials of :func:`sinkhorn`'s plan, for those who use it without writing it.

    ``Q_bk = exp(scores_bk / ε − u_b − v_k)``, which is ``softmax_k(scores_bk / ε − v_k)``.

    Args:
        scores, epsilon, iterations, group: as of :func:`sinkhorn`.

    Returns:
        ``(u, v)``, shapes [B] and [K], float64 whatever the scores (float32 on devices without it):
        at logits of 1e4 float32 would leave the plan three digits. v is 0 where a column is left
        out.

    Raises:
        TypeError, ValueError: as :func:`sinkhorn`.
    """
    ranks = agree(group, False, check, scores=scores, epsilon=epsilon, iterations=iterations)
    return ops.sinkhorn_potentials(scores, epsilon, iterations, join=ranks.join)


def column_potentials(scores: Tensor, epsilon: float, iterations: int, ranks: Local) -> Tensor:
    """v alone, a pass less, over ranks that agree."""
    return ops.sinkhorn_columns(scores, epsilon, iterations, join=ranks.join)
