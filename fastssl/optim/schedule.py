"""Learning rates for large batches."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from fastssl.errors import choose

LR_SCALINGS: dict[str, Callable[[int], float]] = {
    "none": lambda batch_size: 1.0,
    "linear": lambda batch_size: batch_size / 256,
    "sqrt": lambda batch_size: math.sqrt(batch_size),
}


def scaled_lr(lr: float, batch_size: int, rule: str) -> float:
    """The learning rate for a batch, by SimCLR's rules.

    Args:
        lr: the base rate; in the paper 0.3 for "linear", 0.075 for "sqrt".
        batch_size: B, images a step over all ranks.
        rule: "none", ``lr``; "linear", ``lr·B/256``; "sqrt", ``lr·√B``.

    Raises:
        UserError: there is no such rule.
    """
    if rule not in LR_SCALINGS:
        raise choose("scaling rule", rule, list(LR_SCALINGS))
    return lr * LR_SCALINGS[rule](batch_size)


def warmup_cosine(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The share of the peak rate at a step: linear from 0 up, then half a cosine down to 0.

    Args:
        step: from 0; step ``warmup_steps`` has the full rate.
        total_steps: the rate is 0 from here on.
        warmup_steps: the first of these has ``1/(warmup_steps + 1)`` of the rate.

    Returns:
        A number from 0 to 1: a function of the step alone, so there is no state to restore.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


def set_lr(optimizer: Optimizer, lr: float, constant: float | None = None) -> None:
    """Give every parameter group this learning rate; where it is a tensor, in that tensor.

    Args:
        optimizer: whose groups.
        lr: the rate of the moment.
        constant: the rate of groups that are marked ``constant_lr``; None: lr as well.
    """
    for group in optimizer.param_groups:
        rate = constant if constant is not None and group.get("constant_lr") else lr
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
