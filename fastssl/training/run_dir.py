"""A run's directory: config, metrics, TensorBoard events, checkpoint."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastssl.data import Unreadable, source_of
from fastssl.errors import UserError
from fastssl.training.checkpoint import load_checkpoint, save_checkpoint
from fastssl.training.config import TrainConfig, config_from, read_yaml, write_yaml

CONFIG, METRICS, CHECKPOINT, EVENTS = "config.yaml", "metrics.jsonl", "checkpoint.pt", "tensorboard"
UNREADABLE = "unreadable.txt"


def new_run_dir(config: TrainConfig) -> Path:
    """Create the run's directory and write its config.

    Raises:
        UserError: it exists and holds a run already, or cannot be made.
    """
    kind, _ = source_of(config.data)
    name = f"{config.method}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = config.run_dir or Path("runs", name)
    if (path / CONFIG).exists():
        raise UserError(f"{path} holds a run already: --resume {path}, or another --run-dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_yaml(config, path / CONFIG)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def write_unreadable(files: Sequence[Unreadable], path: Path) -> None:
    """Name the files that were left out, a line each, if there are any."""
    if files:
        lines = (f"{file.path}: {file.reason}\n" for file in files)
        (path / UNREADABLE).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def read_config(path: Path) -> TrainConfig:
    """The settings of the run in a directory.

    Raises:
        UserError: it holds no run, or its config is broken.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"{path}: there is no run in it (no {CONFIG})")
    return config_from(read_yaml(path / CONFIG), str(path / CONFIG))


class Recorder:
    """Writes a run's metrics and checkpoints. After a kill, both go on from one step.

    Args:
        path: the run's directory.
        seconds: the least time between checkpoints.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.seconds = seconds

    def restore(self) -> dict[str, Any] | None:
        """The last checkpoint, if there is one; metrics written after it are dropped."""
        state = None
        if (self.path / CHECKPOINT).exists():
            state = load_checkpoint(self.path / CHECKPOINT)
        return state

    def start(self, state: dict[str, Any] | None) -> None:
        """Open the files, to go on from a checkpoint or from nothing."""
        from torch.utils.tensorboard import SummaryWriter

        self.metrics = (self.path / METRICS).open("ab")
        self.metrics.truncate(state["metrics_bytes"] if state else 0)
        self.events = SummaryWriter(
            self.path / EVENTS, purge_step=state["step"] + 1 if state else None
        )
        self.saved_at = time.monotonic()

    def record(self, values: dict[str, float]) -> None:
        """Append one line of metrics."""
        self.metrics.write(json.dumps(values).encode() + b"\n")
        self.metrics.flush()
        for key, value in values.items():
            if key not in ("step", "epoch"):
                self.events.add_scalar(key, value, int(values["step"]))

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self.saved_at >= self.seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint that knows how far the metrics are."""
        os.fsync(self.metrics.fileno())
        size = os.fstat(self.metrics.fileno()).st_size
        save_checkpoint({**state, "metrics_bytes": size}, self.path / CHECKPOINT)
        self.saved_at = time.monotonic()

    def close(self) -> None:
        self.metrics.close()
        self.events.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    lines = (path / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def peak_memory_mib(device: torch.device) -> float:
    """The most memory in use so far: of the GPU by tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
