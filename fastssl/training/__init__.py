"""Training: a large batch in chunks, a run directory, exact resumption."""

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
