"""A CUDA device that is none: tensors without data, which say they are on "cuda".

They are torch's meta tensors, so that a step over them takes the paths of CUDA (shapes, checks,
autograd, the fakes of our ops) on any machine, and whoever reads one has nothing to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, META = torch.device("cuda", 0), torch.device("meta")


class HostWaits(AssertionError):
    """What would stop the host until the device has done all that it was given."""


class HostTensor(AssertionError):
    """A tensor of the host, where all is to be on the device."""


# Their results, or shapes of results, depend on values; on CUDA the host fetches these.
READS = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "_unique",
    "_unique2",
}


def on_device(x: object) -> bool:
    return isinstance(x, Tensor) and _true_device(x).type == "meta"


def _true_device(x: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return x.device


class PretendCuda:
    """Within the block "cuda" is a device, and reading from it raises :class:`HostWaits`."""

    def __enter__(self) -> PretendCuda:
        self._stack = ExitStack()
        self._ops = self._stack.enter_context(_Ops())
        self._stack.enter_context(_Names(self._ops))
        return self

    @contextmanager
    def no_waiting(self) -> Iterator[list[str]]:
        """Within the block so do copies to it that wait; gives the ops on it, as they come."""
        self._ops.strict, self._ops.seen = True, []
        try:
            yield self._ops.seen
        finally:
            self._ops.strict = False

    @contextmanager
    def no_host_tensors(self) -> Iterator[None]:
        """Within the block what makes a tensor of the host raises :class:`HostTensor`."""
        self._ops.alone = True
        try:
            yield
        finally:
            self._ops.alone = False

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Names(TorchFunctionMode):
    """ "cuda" on the way in, meta on the way down."""

    def __init__(self, ops: _Ops) -> None:
        super().__init__()
        self._ops = ops

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        if function == Tensor.device.__get__:
            return CUDA if on_device(args[0]) else function(*args)
        if function == Tensor.is_cuda.__get__:
            return on_device(args[0])
        if function == Tensor.is_meta.__get__:
            return False
        if function is Tensor.data_ptr and on_device(args[0]):
            return _address(args[0])
        kwargs.pop("pin_memory", None)  # all of this host's memory will do
        if function is Tensor.cuda:
            function, args = Tensor.to, (args[0], CUDA)
        given, named = tree_map(_meta, (args, kwargs))
        if function in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            source = given[0] if function is not Tensor.new_tensor else given[1]
            here = named.get("device") or (given[0].device if given[0] is not source else None)
            if self._ops.strict and here == META and not isinstance(source, Tensor):
                raise HostWaits(f"{function.__name__} copies numbers of the host to the device")
        indexing = function in (Tensor.__getitem__, Tensor.__setitem__)
        if self._ops.strict and indexing and on_device(args[0]):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(place, list) for place in places):
                raise HostWaits("indexing by a list copies it to the device")
        if function in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and on_device(given[0]):
            raise HostWaits(f"{function.__name__} reads from the device")
        return function(*given, **named)


def _address(x: Tensor) -> int:
    """Where it would be, if it were anywhere: its storage's own, and far from any other's."""
    return (x.untyped_storage()._cdata << 12) + x.storage_offset() * x.element_size()


def _meta(x: Any) -> Any:
    if isinstance(x, torch.device):
        return META if x.type == "cuda" else x
    if isinstance(x, str) and x.split(":")[0] == "cuda":
        return META
    return x


class _Ops(TorchDispatchMode):
    """Looks at every op, in forward and backward; keeps the names of those on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.strict = self.alone = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        name = packet._qualified_op_name.split("::")[-1]
        touched = any(map(on_device, tree_leaves((args, kwargs))))
        if self.strict and touched:
            _check(name, args, kwargs)
        elif self.strict and name == "_to_copy" and kwargs.get("device") == META:
            _check_copy(name, kwargs.get("non_blocking", False))
        result = function(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if self.alone and not all(map(on_device, made)):
            raise HostTensor(f"{name} makes a tensor of the host")
        if touched or any(map(on_device, made)):
            self.seen.append(str(packet))
        return result


def _check(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name in READS:
        raise HostWaits(f"{name} reads from the device")
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        raise HostWaits("repeat_interleave without output_size reads from the device")
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        filled = name != "index" and args[2].numel() == 1
        if any(map(on_device, masks)) and not filled:
            raise HostWaits(f"{name} by a mask counts on the device")
        if any(not on_device(i) for i in args[1] if i is not None):
            raise HostWaits(f"{name} by indices of the host copies them to the device")
    if name == "_to_copy" and (to := kwargs.get("device")) is not None and to != META:
        raise HostWaits("a copy to the host reads from the device")
    if name in ("copy_", "copy"):
        target, source = args[:2]
        if on_device(target) != on_device(source):
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not on_device(target):
                raise HostWaits("a copy to the host reads from the device")
            _check_copy(name, non_blocking)


def _check_copy(name: str, non_blocking: bool) -> None:
    if not non_blocking:
        raise HostWaits(f"{name} from the host, but not non_blocking, waits for the device")
