"""What a result was measured on: processor, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("triton", "numpy", "lightly", "pytorch-metric-learning", "info-nce-pytorch")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Machine and versions as they stand in every results file. No paths, no host names."""
    import fastssl

    told: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastssl": fastssl.__version__,
        "native": native(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    for package in PACKAGES:
        try:
            told[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            told[package] = None
    if device == "cuda" and torch.cuda.is_available():
        told["gpu"] = torch.cuda.get_device_name()
        told["cuda"] = torch.version.cuda
        told["sm"] = "".join(map(str, torch.cuda.get_device_capability()))
    return told


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def native() -> str | None:
    """The instruction set the native kernels chose, or None without a native build."""
    try:
        from fastssl import _build
    except ImportError:
        return None
    return _build.selected_isa()


def commit() -> str:
    """The short commit, with ``+`` after it if tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
