"""Momentum encoders as ``lightly.models.utils`` has them, as of lightly 1.6."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.ops import ema_update_


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """``θ_ema ← m·θ_ema + (1 − m)·θ`` for all parameters, in order and in one launch.

    Buffers stay, as in lightly; see :class:`fastssl.nn.EMA` for an average that has them. Weights
    may differ in dtype.

    Raises:
        ValueError: the modules' parameters differ in number or shape, or m lies outside [0, 1].
    """
    ema_update_(list(model_ema.parameters()), list(model.parameters()), m)


def deactivate_requires_grad(model: nn.Module) -> None:
    """Let no parameter of the model require a gradient."""
    model.requires_grad_(False)


def activate_requires_grad(model: nn.Module) -> None:
    """Let every parameter of the model require a gradient."""
    model.requires_grad_(True)
