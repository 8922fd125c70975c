"""What ``ema_update`` computes, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_update(
    targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float | Tensor
) -> list[Tensor]:
    """``m·target + (1 − m)·source`` for every pair, in new tensors of the targets' dtypes.

    Computed in float32, or in float64 where either of a pair is; integers and booleans are the
    source's. At m = 1 a target stays and at m = 0 it becomes the source, also where the other is
    infinite or NaN.
    """
    return [_updated(t, s, momentum) for t, s in zip(targets, sources, strict=True)]


def _updated(target: Tensor, source: Tensor, momentum: float | Tensor) -> Tensor:
    if not target.is_floating_point():
        return source.clone()
    wide = torch.promote_types(torch.promote_types(target.dtype, source.dtype), torch.float32)
    t, s = target.to(wide), source.to(wide)
    m = torch.as_tensor(momentum, dtype=torch.float64, device=target.device)
    step = torch.lerp(t, s, (1 - m).to(wide))
    return torch.where(m == 1, t, torch.where(m == 0, s, step)).to(target.dtype)
