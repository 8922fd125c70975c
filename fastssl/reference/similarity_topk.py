"""The specification of ``similarity_topk``. It writes the whole matrix; the kernels never do."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.reference.similarity_lse import unit_rows


def similarity_topk(
    queries: Tensor,  # [Q, D]
    bank: Tensor,  # [K, D]
    k: int,
    *,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k largest ``queries_i·bank_j`` of each row i, largest first, and their j, both [Q, k].

    Products are float64 where the device has it, and rounded to float32 before they are compared
    unless the inputs are float64 themselves: what is equal in the result is ordered by index.
    """
    with torch.autocast(queries.device.type, enabled=False):
        wide = torch.float32 if queries.device.type == "mps" else torch.float64
        rows, columns = queries.detach().to(wide), bank.detach().to(wide)
        if normalize:
            rows, columns = unit_rows(rows), unit_rows(columns)
        similarity = rows @ columns.T  # [Q, K]
        if queries.dtype != torch.float64:
            similarity = similarity.float()
        values, indices = similarity.sort(dim=1, descending=True, stable=True)  # NaN is largest
    return values[:, :k].contiguous(), indices[:, :k].contiguous()
