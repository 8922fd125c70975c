"""The specification of ``similarity_lse_loss``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def similarity_lse_loss(
    pair: Tensor,  # [N]
    *lse: Tensor,  # [N] each
) -> Tensor:
    """``softplus(lse_i − pair_i)`` of each row, [N]; the mean of several ``lse``."""
    first, *others = (F.softplus(one - pair) for one in lse)
    return sum(others, first) / len(lse) if others else first
