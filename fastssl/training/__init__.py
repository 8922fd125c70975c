"""Training: a large batch in chunks, a run directory, exact resumption.

Names are imported as they are asked for: a step as a CUDA graph or a batch in chunks needs none of
the packages (``fastssl[train]``) that settings and runs do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastssl.training.captured import CapturedStep
    from fastssl.training.checkpoint import load_checkpoint, save_checkpoint
    from fastssl.training.chunked import chunked_backward
    from fastssl.training.config import TrainConfig
    from fastssl.training.distilling import distill_run, load_student
    from fastssl.training.run import load_run, train
    from fastssl.training.trainer import Trainer

__all__ = [
    "CapturedStep",
    "TrainConfig",
    "Trainer",
    "chunked_backward",
    "distill_run",
    "load_checkpoint",
    "load_run",
    "load_student",
    "save_checkpoint",
    "train",
]
_PLACES = {
    "captured": ("CapturedStep",),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "chunked": ("chunked_backward",),
    "config": ("TrainConfig",),
    "distilling": ("distill_run", "load_student"),
    "run": ("load_run", "train"),
    "trainer": ("Trainer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
