"""Tensors that are met again at every step, and then looked at only for whether they changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastssl.ops.library import LIBRARY

LIBRARY.define("keep(Tensor[] tensors, int written) -> Tensor")
LIBRARY.define("kept_same(Tensor kept) -> bool")


def has_native(name: str) -> bool:
    """Whether the native library is here, and has raw op ``name``."""
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"fastssl::{name}", "CPU")


def watched() -> bool:
    """Whether somebody wants to see the ops themselves: torch.compile, a dispatch mode."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


class Kept:
    """What tensors are: each one's address, shape, strides, dtype and device.

    The native library compares some fifty of them in a microsecond, Python two.

    Args:
        tensors: on any devices; held, and so is their memory.
        written: how many of them, the first, will be written to.
    """

    def __init__(self, tensors: Sequence[Tensor], written: int) -> None:
        self.tensors = list(tensors)
        self._native = has_native("keep")
        self._kept = (
            torch.ops.fastssl.keep(self.tensors, written) if self._native else self._facts()
        )

    def same(self) -> bool:
        """Whether they are what they were."""
        if self._native:
            return torch.ops.fastssl.kept_same(self._kept)
        return self._facts() == self._kept

    def _facts(self) -> list[tuple]:
        return [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in self.tensors]
