"""``sinkhorn``: rows of scores as assignments that use all columns alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_rows
from fastssl.ops.library import define
from fastssl.reference.sinkhorn import (
    finite_columns,
    plan_of,
    potentials_of_columns,
    potentials_of_rows,
)

# Makes the columns' log-sum-exps over these rows those over the rows of all ranks, [K]; knows a
# bound of what it makes, [K], or None.
Join = Callable[[Tensor, Tensor | None], Tensor]


def sinkhorn(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    join: Join | None = None,
) -> Tensor:
    """The plan of :func:`fastssl.functional.sinkhorn`, [B, K]; ``join`` may add other rows."""
    check(scores, epsilon, iterations)
    backend = backends.select("sinkhorn", scores.device.type)
    if join is None and backend == "native" and scores.dtype != torch.float64:
        return backends.raw("sinkhorn_plan_fwd", backend)(scores.detach(), epsilon, iterations)
    columns, rows = _columns(scores, epsilon, iterations, join)
    return _step(scores, epsilon, rows, columns, plan=True)[2]


def sinkhorn_potentials(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    join: Join | None = None,
) -> tuple[Tensor, Tensor]:
    """u [B] and v [K] of the plan ``exp(scores_bk / ε − u_b − v_k)``, which is not written."""
    check(scores, epsilon, iterations)
    columns, rows = _columns(scores, epsilon, iterations, join)
    return _step(scores, epsilon, rows, columns)[0], columns


def sinkhorn_columns(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    join: Join | None = None,
) -> Tensor:
    """v [K] alone, a pass less: ``softmax_k(scores_bk / ε − v_k)`` is the plan."""
    check(scores, epsilon, iterations)
    return _columns(scores, epsilon, iterations, join)[0]


def check(scores: Tensor, epsilon: float, iterations: int) -> None:
    """Floating-point scores [B, K], a positive number and a number of times."""
    check_rows(scores=scores)
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise TypeError(f"epsilon must be a float, not {type(epsilon).__name__}")
    if not 1e-30 < epsilon < 1e30:
        raise ValueError(f"epsilon must be positive (1e-30 to 1e30), not {epsilon}")
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int, not {type(iterations).__name__}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")


def _columns(
    scores: Tensor, epsilon: float, iterations: int, join: Join | None
) -> tuple[Tensor, Tensor | None]:
    """The columns' potentials of the last iteration, the rows' of the one before."""
    rows, bound = None, None
    following = partial(_step, scores, epsilon, following=True, finite=join is None)
    _, columns, _ = following(None, None)
    for i in range(iterations):
        if i:
            rows, columns, _ = following(rows, columns)
        if join is not None:
            columns = bound = finite_columns(join(columns, bound))
    return columns, rows


def _step(
    scores: Tensor,
    epsilon: float,
    rows: Tensor | None,
    columns: Tensor | None,
    *,
    following: bool = False,
    plan: bool = False,
    finite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = scores.detach()
    backend = backends.select("sinkhorn", scores.device.type)
    if backend == "reference" or scores.dtype == torch.float64:
        step = _reference_fwd
    else:
        step = backends.raw("sinkhorn_fwd", backend)
    return step(scores, float(epsilon), rows, columns, following, plan, finite)


def _fwd_fake(scores, epsilon, rows, columns, following, plan, finite=False):
    b, k = scores.shape
    wide = torch.float32 if scores.device.type == "mps" else torch.float64
    return (
        scores.new_empty(0 if columns is None else b, dtype=wide),
        scores.new_empty(k if following else 0, dtype=wide),
        scores.new_empty((b, k) if plan else (0, 0), dtype=_plan_dtype(scores)),
    )


def _reference_fwd(scores, epsilon, rows, columns, following, plan, finite=False):
    """One pass over the scores.

    Without columns: ``(nothing, v, nothing)``, the columns' log-sum-exps. With the potentials of
    columns, and the rows' before (which bound what comes, and change nothing): the rows' anew, with
    ``following`` the columns' log-sum-exps after that, with ``plan`` the plan. ``finite`` makes
    potentials of the log-sum-exps: of no rows' but these.
    """
    out = list(_fwd_fake(scores, epsilon, rows, columns, False, False))
    rows = None
    if columns is not None:
        rows = out[0] = potentials_of_rows(scores, epsilon, columns)
    if following:
        out[1] = potentials_of_columns(scores, epsilon, rows)
        out[1] = finite_columns(out[1]) if finite else out[1]
    if plan:
        out[2] = plan_of(scores, epsilon, rows, columns).to(_plan_dtype(scores))
    return tuple(out)


def _plan_fake(scores, epsilon, iterations):
    return scores.new_empty(scores.shape, dtype=_plan_dtype(scores))


def _reference_plan(scores, epsilon, iterations):
    return references.sinkhorn(scores, epsilon, iterations)[0].to(_plan_dtype(scores))


def _plan_dtype(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32


define(
    "sinkhorn_plan_fwd(Tensor scores, float epsilon, int iterations) -> Tensor",
    fake=_plan_fake,
    reference=_reference_plan,
)
define(
    "sinkhorn_fwd(Tensor scores, float epsilon, Tensor? rows, Tensor? columns, "
    "bool following, bool plan, bool finite=False) -> (Tensor, Tensor, Tensor)",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="sinkhorn",
)
backends.register("sinkhorn", "native", "triton")
