"""The specification of ``sinkhorn``: alternating log-sum-exps, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

INF = float("inf")


def sinkhorn(
    scores: Tensor,  # [B, K]
    epsilon: float = 0.05,
    iterations: int = 3,
) -> tuple[Tensor, Tensor, Tensor]:
    """The plan ``Q_bk = exp(scores_bk/ε − u_b − v_k)`` [B, K] and its potentials u [B] and v [K].

    Each iteration normalises the columns (prototypes), then the rows (samples). float64 where the
    device has it. A column of nothing but −inf is left out; NaN or +inf makes everything NaN.
    """
    columns = finite_columns(potentials_of_columns(scores, epsilon, None))
    rows = potentials_of_rows(scores, epsilon, columns)
    for _ in range(iterations - 1):
        columns = finite_columns(potentials_of_columns(scores, epsilon, rows))
        rows = potentials_of_rows(scores, epsilon, columns)
    return plan_of(scores, epsilon, rows, columns), rows, columns


def potentials_of_columns(scores: Tensor, epsilon: float, rows: Tensor | None) -> Tensor:
    """``v_k = log Σ_b exp(scores_bk/ε − u_b)``, [K]."""
    logits = widened(scores) / epsilon
    return (logits if rows is None else logits - rows[:, None]).logsumexp(0)


def potentials_of_rows(scores: Tensor, epsilon: float, columns: Tensor) -> Tensor:
    """``u_b = log Σ_k exp(scores_bk/ε − v_k)``, [B]."""
    return (widened(scores) / epsilon - columns).logsumexp(1)


def plan_of(scores: Tensor, epsilon: float, rows: Tensor, columns: Tensor) -> Tensor:
    """``Q_bk = exp(scores_bk/ε − u_b − v_k)``, [B, K]."""
    return torch.exp(widened(scores) / epsilon - columns - rows[:, None])


def finite_columns(columns: Tensor) -> Tensor:
    """Potentials of columns: any number where nothing enters (−inf), NaN for +inf."""
    return torch.where(columns == -INF, 0.0, torch.where(columns == INF, torch.nan, columns))


def widened(x: Tensor) -> Tensor:
    """In float64, or float32 on devices without it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
