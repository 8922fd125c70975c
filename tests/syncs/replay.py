"""CUDA graphs on a CPU: what is recorded is repeated on the memory it was recorded on.

As with a graph, Python does not run again: numbers it gave to an op stay as they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, result in self.calls:
                anew = function(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(anew), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else written in place
                        old.copy_(new)


class Capture(TorchDispatchMode):
    """Stands for ``torch.cuda.graph``: records what runs in the block, and takes it back."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.before: list[tuple[Tensor, Tensor]] = []
        self.mine: set[int] = set()  # addresses of memory that came in the block

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _writes(function):
            for x in _tensors((args, kwargs)):
                if x.untyped_storage().data_ptr() not in self.mine:
                    self.before.append((x.detach(), x.detach().clone()))
        result = function(*args, **kwargs)
        if not _views(function):
            # Kept alive by the record, so that no address comes twice.
            given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
            self.mine |= {x.untyped_storage().data_ptr() for x in _tensors(result)} - given
            self.graph.calls.append((function, args, kwargs, result))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for x, old in reversed(self.before):
                x.copy_(old)


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _writes(function: Any) -> bool:
    silent = torch.ops.aten.native_batch_norm.default  # whose schema says nothing of its statistics
    return function._schema.is_mutable or function is silent


def _views(function: Any) -> bool:
    return any(
        r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns
    )
