"""Optimisers by name, and the schedules that go with large batches."""

from fastssl.optim.factory import OPTIMIZERS, build_optimizer, parameter_groups
from fastssl.optim.lars import LARS
from fastssl.optim.schedule import LR_SCALINGS, scaled_lr, set_lr, warmup_cosine

__all__ = [
    "LARS",
    "LR_SCALINGS",
    "OPTIMIZERS",
    "build_optimizer",
    "parameter_groups",
    "scaled_lr",
    "set_lr",
    "warmup_cosine",
]
