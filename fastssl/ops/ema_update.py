"""``ema_update_``: a moving average of any number of tensors, in place and in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops import kept
from fastssl.ops.checks import FLOATS, check_zero_dim
from fastssl.ops.kept import Kept, has_native
from fastssl.ops.library import LIBRARY, define


@torch.no_grad()
def ema_update_(
    targets: Sequence[Tensor], sources: Sequence[Tensor], momentum: float | Tensor
) -> None:
    """Move every target a step towards its source, all of them in one launch.

    ``target ← m·target + (1 − m)·source``, as ``target + (1 − m)·(source − target)``: at m = 1 a
    target stays and at m = 0 it becomes the source, also where the other is infinite or NaN.
    Between them it is ``torch.lerp``: ∞ − ∞ is NaN there. Pairs of integer or boolean tensors are
    copied, whatever m is. There is no gradient: tensors that require one count as detached.

    A bfloat16 target has 8 bits: a step of (1 − m)·|source − target| that is below 2⁻⁹ of it is
    rounded away, at m = 0.999 nearly all of them. Keep float32 targets of bfloat16 sources.

    Args:
        targets: tensors of any shapes and of one device; float32, bfloat16, float16, float64 in
            any mixture, or integers and booleans. Written in place; strided ones by a copy.
        sources: as many tensors, each of its target's shape. Floating-point ones may have any
            floating-point dtype, others have their target's.
        momentum: m, a float in [0, 1], or a 0-dim tensor on the targets' device, which is not
            looked at by the host (float64 keeps the digits of 1 − m).

    The average is computed in float32, in float64 where either of a pair is, and rounded once.
    Results have the same bits at any number of threads.

    A target may be its own source, and then stays. Other targets may not share memory with a
    target or a source: dense tensors that do raise, views with gaps are not looked at.

    Raises:
        TypeError: an argument is no tensor, or the dtypes of a pair do not go together.
        ValueError: the numbers of tensors, the shapes of a pair or the devices differ, or a float
            momentum lies outside [0, 1].
        RuntimeError: tensors share memory.
        BackendError: a backend was asked for that cannot serve these tensors.
    """
    targets, sources = list(targets), list(sources)
    if not targets:
        return check_pairs(targets, sources)
    backend = _backend(targets)
    # The native kernel checks the rest itself, faster, but does not name the argument.
    checks_itself = backend == "native" and not kept.watched() and _on_one_device(targets, sources)
    if not checks_itself:
        check_pairs(targets, sources)
    check_momentum(momentum, targets[0].device)
    args = (targets, sources, *_number(momentum))
    step = _reference_fwd if backend == "reference" else backends.raw("ema_update_fwd", backend)
    try:
        step(*args)
    except RuntimeError:
        if checks_itself:
            check_pairs(targets, sources)
        raise
    if not torch.compiler.is_compiling():  # else the schema tells
        torch.autograd.graph.increment_version(targets)


class EmaUpdate:
    """:func:`ema_update_` of the same tensors, step after step: they are checked and laid out once,
    and a step then looks only for whether any of them has changed. It holds them.

    Raises:
        as :func:`ema_update_` does.
    """

    def __init__(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        check_pairs(targets, sources)
        self.targets, self.sources = list(targets), list(sources)
        if not self.targets:
            return
        self._backend = _backend(self.targets)
        self._step: Callable[[Tensor | None, float], bool]
        if self._backend == "native" and has_native("ema_update_again"):
            held = torch.ops.fastssl.ema_update_keep(self.targets, self.sources)
            self._step = partial(torch.ops.fastssl.ema_update_again, held)
            return
        launch = None
        if self._backend == "triton":
            triton = import_module("fastssl_kernels.ema_update")
            launch = triton.prepare_ema_update_fwd(self.targets, self.sources)
        held = Kept(self.targets + self.sources, len(self.targets))
        pairs = self.targets, self.sources
        self._step = partial(_where_same, held, launch or partial(_anew, *pairs))

    def __call__(self, momentum: float | Tensor) -> bool:
        """Take a step. False, and nothing is done: a tensor is not what it was, or another backend
        would serve it now."""
        if not self.targets:
            return True
        check_momentum(momentum, self.targets[0].device)
        if _backend(self.targets) != self._backend or not self._step(*_number(momentum)):
            return False
        torch.autograd.graph.increment_version(self.targets)
        return True


def _where_same(held: Kept, step: Callable, scalar: Tensor | None, momentum: float) -> bool:
    if not held.same():
        return False
    step(scalar, momentum)
    return True


def _anew(targets, sources, scalar, momentum):
    ema_update_(targets, sources, momentum if scalar is None else scalar)


def _backend(targets: Sequence[Tensor]) -> str:
    device = targets[0].device.type if isinstance(targets[0], Tensor) else "cpu"
    return backends.select("ema_update", device)


def _on_one_device(targets: list[Tensor], sources: list[Tensor]) -> bool:
    return len({getattr(t, "device", None) for t in targets + sources}) == 1


def _number(momentum: float | Tensor) -> tuple[Tensor | None, float]:
    return (momentum, 1.0) if isinstance(momentum, Tensor) else (None, momentum)


def check_pairs(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """What :func:`ema_update_` asks of its tensors, but for where they lie."""
    if len(targets) != len(sources):
        raise ValueError(f"{len(targets)} targets need as many sources, not {len(sources)}")
    for name, tensors in (("targets", targets), ("sources", sources)):
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}[{i}] must be a tensor, not {type(tensor).__name__}")
    device = targets[0].device if targets else None
    checked: set[tuple[torch.dtype, torch.dtype]] = set()  # the hundreds of a model have few
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if target.shape != source.shape:
            raise ValueError(
                f"sources[{i}] must have the shape of targets[{i}], {list(target.shape)}, "
                f"not {list(source.shape)}"
            )
        if target.device != device or source.device != device:
            name, tensor = ("sources", source) if target.device == device else ("targets", target)
            raise ValueError(
                f"{name}[{i}] must be on the device of targets[0], {device}, not {tensor.device}"
            )
        dtypes = (target.dtype, source.dtype)
        if dtypes in checked:
            continue
        checked.add(dtypes)
        if target.dtype in FLOATS:
            if source.dtype not in FLOATS:
                raise TypeError(
                    f"sources[{i}] must be float32, bfloat16, float16 or float64 as targets[{i}] "
                    f"is {target.dtype}, not {source.dtype}"
                )
        elif target.is_floating_point() or target.is_complex() or source.dtype != target.dtype:
            raise TypeError(
                f"targets[{i}] and sources[{i}] must be float32, bfloat16, float16 or float64, or "
                f"of one integer or boolean dtype, not {target.dtype} and {source.dtype}"
            )


def check_momentum(momentum: float | Tensor, device: torch.device) -> None:
    if not isinstance(momentum, Tensor):
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], not {momentum}")
        return
    check_zero_dim("momentum", momentum)
    if momentum.device != device:
        raise ValueError(
            f"momentum must be on the targets' device, {device}, not {momentum.device}"
        )


def _reference_fwd(targets, sources, scalar, momentum):
    m = momentum if scalar is None else scalar
    if not torch.compiler.is_compiling():
        check_apart(targets, sources)
    for target, source in zip(targets, sources, strict=True):
        if not is_itself(target, source):
            target.copy_(references.ema_update([target], [source], m)[0])


def is_itself(target: Tensor, source: Tensor) -> bool:
    """Whether both are the same elements of the same memory."""
    if target is source or torch.compiler.is_compiling():
        return target is source
    return (
        target.data_ptr() == source.data_ptr()
        and target.stride() == source.stride()
        and target.dtype == source.dtype
    )


def check_apart(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """No target is expanded, nor shares memory with another tensor where both are dense; but
    exactly with its source it may.

    Raises:
        RuntimeError: one does.
    """
    extents = []  # of each dense tensor: begin, end, whether it is written, name
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if any(
            not stride and size > 1
            for stride, size in zip(target.stride(), target.shape, strict=True)
        ):
            raise RuntimeError(f"targets[{i}] is expanded: its elements share memory")
        ends = (
            [("targets", target)]
            if is_itself(target, source)
            else [("targets", target), ("sources", source)]
        )
        for name, tensor in ends:
            if tensor.numel() and _dense(tensor):
                begin = tensor.data_ptr()
                extents.append((begin, begin + tensor.nbytes, name == "targets", f"{name}[{i}]"))
    last: dict[bool, tuple] = {}  # of those written and of those read, what reaches farthest
    for extent in sorted(extents):
        for written, (_, end, _, name) in last.items():
            if end > extent[0] and (written or extent[2]):
                raise RuntimeError(f"{name} and {extent[3]} share memory")
        if extent[2] not in last or last[extent[2]][1] < extent[1]:
            last[extent[2]] = extent


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each once, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    following = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != following:
                return False
            following *= size
    return True


define(
    "ema_update_fwd(Tensor(a!)[] targets, Tensor[] sources, Tensor? scalar, float momentum) -> ()",
    fake=lambda targets, sources, scalar, momentum: None,
    reference=_reference_fwd,
    module="ema_update",
)
LIBRARY.define("ema_update_keep(Tensor[] targets, Tensor[] sources) -> Tensor")
LIBRARY.define("ema_update_again(Tensor kept, Tensor? scalar, float momentum) -> bool")
backends.register("ema_update", "native", "triton")
