"""Optimisers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastssl.errors import choose
from fastssl.optim.lars import LARS

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr, momentum=momentum),
    "adamw": lambda groups, lr, momentum: torch.optim.AdamW(groups, lr, betas=(momentum, 0.999)),
    "lars": lambda groups, lr, momentum: LARS(groups, lr, momentum),
}


def build_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> Optimizer:
    """An optimiser of the module's parameters.

    Args:
        name: "sgd", "adamw" or "lars".
        module: its trainable parameters; biases and norms are not decayed.
        lr: the peak learning rate.
        momentum: of SGD and LARS; of AdamW, β₁.
        weight_decay: of SGD and LARS added to the gradient, of AdamW decoupled.

    Raises:
        UserError: there is no such optimiser.
    """
    if name not in OPTIMIZERS:
        raise choose("optimizer", name, list(OPTIMIZERS))
    return OPTIMIZERS[name](parameter_groups(module, weight_decay), lr, momentum)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and filters, decayed; biases and norms (one dimension or none), not."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
