"""Which implementations exist here, which one serves an op, and why the others do not.

Every op has up to three implementations:

- ``reference``: plain PyTorch, the specification, serves every device;
- ``native``: C++ for CPU tensors, in ``fastssl/_native*.so``, and of some ops CUDA C++ for CUDA
  tensors, in ``fastssl/_cuda*.so``;
- ``triton``: Triton kernels for CUDA tensors (and for CPU tensors when the
  interpreter is on, ``TRITON_INTERPRET=1``, if asked for by name).

Left to itself an op takes the fastest one that can serve its tensors. ``use_backend`` or the
environment variable ``FASTSSL_BACKEND`` asks for one by name; if that one cannot serve, the
op raises :class:`BackendError` with the reason instead of quietly taking another.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

NAMES = ("reference", "native", "triton")


class BackendError(RuntimeError):
    """The backend that was asked for cannot serve these tensors here."""


def _checked(name: str | None, source: str) -> str | None:
    if name is not None and name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, not {name!r}")
    return name


_forced: str | None = _checked(os.environ.get("FASTSSL_BACKEND") or None, "FASTSSL_BACKEND")


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Serve every op by one named backend within the block; ``None`` restores the free choice.

    The choice is one for the whole process. A backward pass uses the backend of its forward.

    Args:
        name: ``"reference"``, ``"native"``, ``"triton"`` or ``None``.

    Raises:
        ValueError: for any other name.
        BackendError: at once, if the backend is not available on this machine at all; at the
            op, if it is but cannot serve that op's tensors.
    """
    global _forced
    _checked(name, "backend")
    if name in ("native", "triton"):
        reason = unavailable(name)
        if reason:
            raise BackendError(f"backend {name!r} is not available: {reason}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


def forced_backend() -> str | None:
    """The backend asked for by ``use_backend`` or ``FASTSSL_BACKEND``, or None."""
    return _forced


def unavailable(name: str) -> str | None:
    """Why the backend is missing on this machine, or None if it is here."""
    return _MISSING[name]


def _load_native() -> str | None:
    libraries = glob.glob(str(Path(__file__).parent / "_native*.so"))
    if not libraries:
        return "the native library was not built (install with a C++ compiler, FASTSSL_BUILD_CPP=1)"
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        return f"the native library does not load with torch {torch.__version__}: {error}"
    return None


def _load_cuda() -> str | None:
    libraries = glob.glob(str(Path(__file__).parent / "_cuda*.so"))
    if not libraries:
        return "the native library was built without CUDA (needs nvcc and a CUDA build of torch)"
    try:
        torch.ops.load_library(libraries[0])
    except OSError as error:
        return f"the CUDA library does not load with torch {torch.__version__}: {error}"
    return None


def _find_triton() -> str | None:
    # Only looked for: importing Triton takes longer than importing everything else here.
    for package, name in (("triton", "Triton"), ("fastssl_kernels", "the fastssl_kernels package")):
        if find_spec(package) is None:
            return f"{name} is not installed"
    return None


# Settled at import, as plain values, so that torch.compile can trace and guard the choice.
_MISSING = {"reference": None, "native": _load_native(), "triton": _find_triton()}
_NO_CUDA = _load_cuda()
_IN_CUDA = ("augment", "augment_parameters")  # what native is for CUDA tensors too
_INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True", "yes", "on")


def interpreting() -> bool:
    """Whether Triton kernels run on CPU tensors under Triton's interpreter."""
    return _INTERPRETING


# Which backends implement an op, fastest first; filled by fastssl.ops, read by `fastssl info`.
_implementations: dict[str, tuple[str, ...]] = {}


def register(op: str, *names: str) -> None:
    """Declare which backends besides the reference implement ``op``, fastest first."""
    for name in names:
        _checked(name, "backend")
    _implementations[op] = (*names, "reference")


def ops() -> tuple[str, ...]:
    """The names of all registered ops."""
    return tuple(_implementations)


def why_not(name: str, op: str, device_type: str) -> str | None:
    """Why backend ``name`` cannot serve ``op`` on tensors of ``device_type``, or None if it can."""
    if name not in _implementations[op]:
        return f"{op} has no {name} implementation"
    if name == "reference":
        return None
    reason = unavailable(name)
    if reason:
        return reason
    if name == "native" and device_type == "cuda" and op in _IN_CUDA:
        return _NO_CUDA
    if name == "native" and device_type != "cpu":
        return f"native kernels serve CPU tensors, not {device_type}"
    if name == "triton":
        if device_type == "cuda":
            return "TRITON_INTERPRET=1 serves CPU tensors" if interpreting() else None
        if not (device_type == "cpu" and interpreting()):
            return f"Triton kernels serve CUDA tensors, not {device_type}" + (
                "" if device_type != "cpu" else " (CPU tensors only with TRITON_INTERPRET=1)"
            )
    return None


def select(op: str, device_type: str) -> str:
    """The backend that serves ``op`` on tensors of ``device_type``.

    Raises:
        BackendError: if a backend was asked for by name and cannot.
    """
    if _forced is not None:
        reason = why_not(_forced, op, device_type)
        if reason:
            raise BackendError(
                f"backend {_forced!r} was asked for but cannot serve {op} "
                f"on {device_type}: {reason}"
            )
        return _forced
    for name in _implementations[op]:
        # The interpreter is for proofs, far too slow to be taken unasked.
        if name == "triton" and device_type != "cuda":
            continue
        if why_not(name, op, device_type) is None:
            return name
    return "reference"


def raw(name: str, backend: str) -> Callable[..., Any]:
    """The callable that runs raw op ``name`` (``<op>_fwd`` or ``<op>_bwd``) by ``backend``.

    Through the torch dispatcher wherever that leads to the backend; directly for Triton's
    interpreter, whose tensors the dispatcher would send to the native kernel.
    """
    if backend == "triton" and interpreting():
        module = import_module(f"fastssl_kernels.{name.rsplit('_', 1)[0]}")
        return getattr(module, f"launch_{name}")
    return getattr(torch.ops.fastssl, name)
