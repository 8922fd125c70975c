"""Optimisers by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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
    "lars-torch": lambda groups, lr, momentum: LARS(groups, lr, momentum, order="torch"),
}
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    constant_lr: Iterable[str] = (),
) -> Optimizer:
    """An optimiser of the module's parameters.

    Args:
        name: "sgd", "adamw", "lars" (as SimCLR's authors) or "lars-torch" (as MoCo v3 and BYOL:
            with the learning rate outside of the velocity).
        module: its trainable parameters; biases and norms are not decayed, nor adapted by LARS.
        lr: the peak learning rate.
        momentum: of SGD and LARS; of AdamW, β₁.
        weight_decay: of SGD and LARS added to the gradient, of AdamW decoupled.
        constant_lr: as of :func:`parameter_groups`.

    Raises:
        UserError: there is no such optimiser.
    """
    if name not in OPTIMIZERS:
        raise choose("optimizer", name, list(OPTIMIZERS))
    groups = parameter_groups(module, weight_decay, constant_lr=constant_lr)
    return OPTIMIZERS[name](groups, lr, momentum)


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    exclude: Iterable[str] | None = None,
    constant_lr: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Two groups for an optimiser: matrices and filters, decayed; biases and norms, not.

    Args:
        module: its trainable parameters.
        weight_decay: of the first group; the second's is 0.
        exclude: regular expressions: parameters whose names contain one go to the second group and
            no others. None: what has one dimension or none, is called ``bias``, or is of a norm.
        constant_lr: names of submodules whose parameters make two more such groups, marked
            ``constant_lr``: :func:`set_lr` keeps them at the peak rate.

    Returns:
        Each group's ``params``, ``param_names``, ``weight_decay`` and ``adapt``, which is for LARS:
        whether it adapts the step to the weights. A group without parameters is left out.
    """

    def excluded(name: str, parameter: nn.Parameter) -> bool:
        if exclude is not None:
            return any(re.search(pattern, name) for pattern in patterns)
        owner, _, leaf = name.rpartition(".")
        of_norm = isinstance(module.get_submodule(owner), NORMS)
        return parameter.dim() <= 1 or leaf == "bias" or of_norm

    patterns = list(exclude or ())
    constant = tuple(f"{submodule}." for submodule in constant_lr)
    groups: list[dict[str, Any]] = []
    for marks in ({}, {"constant_lr": True})[: 1 + bool(constant)]:
        groups += [
            {"params": [], "param_names": [], "weight_decay": weight_decay, "adapt": True, **marks},
            {"params": [], "param_names": [], "weight_decay": 0.0, "adapt": False, **marks},
        ]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = groups[excluded(name, parameter) + 2 * name.startswith(constant)]
            group["params"].append(parameter)
            group["param_names"].append(name)
    return [group for group in groups if group["params"]]
