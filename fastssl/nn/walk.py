"""What a module holds: its parameters and buffers, and those of all modules in it."""

from __future__ import annotations

import operator

from torch import Tensor, nn

# Names under which a wrapper (torch.compile, checkpointing, FSDP) holds the module it wraps.
WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def unwrapped(module: nn.Module) -> nn.Module:
    """What DistributedDataParallel, DataParallel, torch.compile and the like hold."""
    while True:
        inner = WRAPPED & module._modules.keys()
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = {"module"}
        if not inner:
            return module
        module = module.get_submodule(inner.pop())


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once; wrappers on the way are not in the names."""
    found: dict[str, Tensor] = {}
    _collect(module, "", found, set())
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    for table in (module._parameters, module._buffers):
        for name, tensor in table.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[prefix + name] = tensor
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, prefix if name in WRAPPED else f"{prefix}{name}.", found, seen)


def tensors_in_python(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, module by module, tied ones again."""
    tables = (table for m in module.modules() for table in (m._parameters, m._buffers))
    return [t for table in tables for t in table.values() if t is not None]


def holds_python(module: nn.Module, tensors: list[Tensor]) -> bool:
    """Whether a module's tensors are these very ones, which ``tensors_in`` gave."""
    found = tensors_in_python(module)
    return len(found) == len(tensors) and all(map(operator.is_, found, tensors))


try:
    from fastssl._walk import holds, tensors_in
except ImportError:  # no native build: ten times slower
    holds, tensors_in = holds_python, tensors_in_python
