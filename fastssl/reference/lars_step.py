"""The specification of ``lars_step``: one parameter after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.reference.ema_update import ema_update


def lars_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: float | Tensor,
    *,
    momentum: float,
    weight_decay: float = 0.0,
    trust_coefficient: float | None = 1e-3,
    eps: float = 0.0,
    order: str = "classic",
    nesterov: bool = False,
    separate_norms: bool = False,
    averages: Sequence[Tensor] = (),
    ema_momentum: float | Tensor = 1.0,
) -> None:
    """A step of LARS, in place; see :func:`fastssl.ops.lars_step`.

    All is computed in float32 (float64 for float64 parameters), norms in float64 where the device
    has it.
    """
    for i, (w, g, v) in enumerate(zip(params, grads, velocities, strict=True)):
        wide = torch.float64 if w.dtype == torch.float64 else torch.float32
        x = w.to(wide)
        d = g.to(wide) + weight_decay * x

        def ratio(change: Tensor, x: Tensor = x, g: Tensor = g) -> float | Tensor:
            if trust_coefficient is None:
                return 1.0
            size, length = _norm(x), _norm(change)
            if separate_norms:
                length = _norm(g) + weight_decay * size
            trusted = trust_coefficient * size / (length + eps)
            return torch.where((size > 0) & (length > 0), trusted, 1.0)

        def moved(step: Tensor, v: Tensor = v) -> Tensor:
            """The velocity with a step added, and what the parameter loses."""
            v.copy_(momentum * v + step)
            return momentum * v + step if nesterov else v

        if order == "classic":
            x = x - moved(lr * ratio(d) * d)
        elif order == "torch":
            x = x - lr * moved(ratio(d) * d)
        else:  # popular
            u = moved(d)
            x = x - lr * ratio(u) * u
        w.copy_(x)
        if averages:
            averages[i].copy_(ema_update([averages[i]], [w], ema_momentum)[0])


def _norm(x: Tensor) -> Tensor:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    return torch.linalg.vector_norm(x, dtype=wide)
