"""LARS, for large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

TRUST = 1e-3  # η


class LARS(Optimizer):
    """SGD whose step on each layer is in proportion to the layer's weights.

    ``d = ∇ + wd·w``; ``v ← μ·v + (η·‖w‖/‖d‖)·d``; ``w ← w − lr·v``. The ratio is 1 where a norm is
    0, and for parameters of one dimension or none: biases and norms.

    Args:
        params: parameters or groups of them.
        lr: the rate; with a schedule, of the moment.
        momentum: μ.
        weight_decay: wd.

    You et al. 2017, https://arxiv.org/abs/1708.03888, as MoCo v3 has it
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; nothing is read from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                d = w.grad + group["weight_decay"] * w
                if w.dim() > 1:
                    size, change = w.norm(), d.norm()
                    ratio = TRUST * size / change
                    d = d * torch.where((size > 0) & (change > 0), ratio, 1.0)
                state = self.state[w]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(w)
                state["velocity"].mul_(group["momentum"]).add_(d)
                w.sub_(group["lr"] * state["velocity"])
        return loss
