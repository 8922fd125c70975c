"""Tensors that are met again at every step, and then looked at only for whether they changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastssl.ops.library import LIBRARY

LIBRARY.define("keep(Tensor[] tensors, int written) -> Tensor")
LIBRARY.define("kept_same(Tensor kept) -> bool")
LIBRARY.define("layout(Tensor[] tensors) -> Tensor")
LIBRARY.define("layout_addresses(Tensor layout, Tensor[] tensors) -> Tensor")


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
            torch.ops.fastssl.keep(self.tensors, written)
            if self._native
            else [_facts(t) for t in self.tensors]
        )

    def same(self) -> bool:
        """Whether they are what they were."""
        if self._native:
            return torch.ops.fastssl.kept_same(self._kept)
        return [_facts(t) for t in self.tensors] == self._kept


class Layout:
    """How tensors lie, as gradients that come each time anew do: all of a :class:`Kept` but the
    address. It holds none of them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        tensors = list(tensors)
        self._native = has_native("layout")
        self._kept = (
            torch.ops.fastssl.layout(tensors) if self._native else [_facts(t)[1:] for t in tensors]
        )

    def addresses(self, tensors: Sequence[Tensor]) -> list[int] | None:
        """Where these lie; None if one is not like that in its place."""
        tensors = list(tensors)
        if not self._native:
            like = [_facts(t)[1:] for t in tensors] == self._kept
            return [t.data_ptr() for t in tensors] if like else None
        found = torch.ops.fastssl.layout_addresses(self._kept, tensors).tolist()
        return found if len(found) == len(tensors) else None


def _facts(t: Tensor) -> tuple:
    return t.data_ptr(), t.shape, t.stride(), t.dtype, t.device
