"""The specification of ``similarity_lse``. It writes the whole matrix; the kernels never do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows with a smaller norm have no direction: they count as zero and receive no gradient.
NORM_EPS = 1e-12


def inverse_norms(x: Tensor) -> Tensor:
    """1/‖x_i‖ of the rows of ``x`` [M, D], as [M, 1]; 0 for rows without direction."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm < NORM_EPS, 0.0, 1.0 / norm)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of ``x`` [M, D] divided by their norms; rows without direction become zero."""
    norm = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)  # [M, 1]
    has_direction = ~(norm < NORM_EPS)  # a NaN norm must stay visible
    safe = torch.where(has_direction, x, 1.0)  # keeps the square root away from its kink at 0
    unit = safe / torch.linalg.vector_norm(safe, dim=1, keepdim=True)
    return torch.where(has_direction, unit, 0.0)


def similarity_lse(
    x: Tensor,  # [M, D]
    y: Tensor | None = None,  # [K, D]
    scale: float | Tensor = 1.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """``lse_i = log Σ_j exp(scale · x_i·y_j)`` and the logits of the pairs, both [M]."""
    return similarity_lse_both(x, y, scale, **options)[:2]


def similarity_lse_both(
    x: Tensor,  # [M, D]
    y: Tensor | None = None,  # [K, D]
    scale: float | Tensor = 1.0,
    *,
    normalize: bool = False,
    self_offset: int | None = None,
    pair_offset: int | None = None,
    exclude_pair: bool = False,
    pairs: Tensor | None = None,  # [M, D]
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the columns' ``log Σ_i exp(scale · x_i·y_j)`` [K].

    Everything is computed in float64 where the device has it: this is the truth, not the pace.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        rows = x.to(wide)
        columns = rows if y is None else y.to(wide)
        if normalize:
            rows = unit_rows(rows)
            columns = rows if y is None else unit_rows(columns)
        if isinstance(scale, Tensor):
            scale = scale.to(wide)
        logits = scale * (rows @ columns.T)  # [M, K]

        m, k = logits.shape
        i = torch.arange(m, device=x.device)
        excluded = torch.zeros(m, k, dtype=torch.bool, device=x.device)
        if self_offset is not None:
            excluded[i, (i + self_offset) % k] = True
        if exclude_pair and pair_offset is not None:
            excluded[i, (i + pair_offset) % k] = True
        lse, column_lse = masked_lse(logits, excluded), masked_lse(logits.T, excluded.T)

        pair = logits.new_zeros(m)
        if pair_offset is not None:
            pair = logits[i, (i + pair_offset) % k]
        if pairs is not None:
            own = unit_rows(pairs.to(wide)) if normalize else pairs.to(wide)
            pair = scale * (rows * own).sum(dim=1)
    return lse, pair, column_lse


def masked_lse(logits: Tensor, excluded: Tensor) -> Tensor:
    """Row-wise log-sum-exp [M] over what is not excluded; −inf, without gradient, for no entry."""
    nothing_left = excluded.all(dim=1, keepdim=True)  # [M, 1]
    # A row of nothing but −inf has a NaN gradient, so such rows get a finite stand-in.
    logits = logits.masked_fill(excluded & ~nothing_left, float("-inf"))
    lse = torch.logsumexp(torch.where(nothing_left, 0.0, logits), dim=1)
    return torch.where(nothing_left.squeeze(1), float("-inf"), lse)
