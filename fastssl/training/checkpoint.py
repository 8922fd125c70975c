"""Checkpoints that are whole or absent, and hold nothing but numbers and text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fastssl.errors import UserError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in one atomic step: a kill leaves the old one or the new one.

    Args:
        state: tensors, numbers, strings, None, and lists and dicts of these.
        path: where; a file beside it, ``.tmp``, is written first.
    """
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in it is executed (``weights_only=True``).

    Raises:
        UserError: there is none, it is broken, or it holds more than numbers and text.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and zip errors of many kinds
        raise UserError(
            f"{path}: not a checkpoint that can be trusted: {str(error).splitlines()[0]}"
        ) from error
