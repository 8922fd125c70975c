"""The specification of ``similarity_softplus``. It writes the matrix; the kernels never do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.reference.similarity_lse import unit_rows


def similarity_softplus(
    x: Tensor,  # [M, D]
    y: Tensor,  # [K, D]
    scale: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    *,
    normalize: bool = False,
    pair_offset: int | None = None,
    exclude_pair: bool = False,
) -> tuple[Tensor, Tensor]:
    """``total_i = Σ_j log(1 + exp(scale · x_i·y_j + bias))`` and the pairs' logits, both [M].

    Everything is computed in float64 where the device has it: this is the truth, not the pace.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        rows, columns = x.to(wide), y.to(wide)
        if normalize:
            rows, columns = unit_rows(rows), unit_rows(columns)
        scale, bias = (t.to(wide) if isinstance(t, Tensor) else t for t in (scale, bias))
        logits = scale * (rows @ columns.T) + bias  # [M, K]
        logits = logits + (logits - logits)  # NaN for an infinite one: no sum may hide it

        terms = -F.logsigmoid(-logits)  # F.softplus stops being exact at 20
        pair = logits.new_zeros(len(x))
        if pair_offset is not None:
            i = torch.arange(len(x), device=x.device)
            partner = (i + pair_offset) % len(y)
            pair = logits[i, partner]
            if exclude_pair:
                excluded = torch.zeros_like(logits, dtype=torch.bool)
                excluded[i, partner] = True
                terms = terms.masked_fill(excluded, 0.0)
    return terms.sum(dim=1), pair
