"""``lars_step`` on CUDA (and, under Triton's interpreter, CPU) tensors: all in three launches.

Sums of squares of pieces of the tensors, each tensor's trust ratio from its pieces' in order, and
the update of the pieces; without adaptation the update only. What a program needs to know comes
from two tables in device memory: the pieces, which depend on the tensors' sizes alone, and where
the tensors lie, which is looked at anew at every call. Nothing here waits for the device, and every
result is bitwise repeatable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

import fastssl_kernels.similarity_lse_plan as chip
from fastssl_kernels.lars_step_tables import on_device, pieces_of
from fastssl_kernels.similarity_lse_tiles import narrow

BLOCK = 4096  # elements of a piece
WARPS = 8
FIELDS: tl.constexpr = tl.constexpr(5)  # of a tensor in their table
SUMS = 256  # pieces of a tensor whose sums are added at once
ORDERS = ("classic", "torch", "popular")
TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}


@triton.jit
def _pointer(
    tensors_ptr, tensor, begin, WHICH: tl.constexpr, TYPE: tl.constexpr, ALIGNED: tl.constexpr
):
    address = tl.load(tensors_ptr + FIELDS * tensor + WHICH)
    pointer = address.to(tl.pointer_type(TYPE)) + begin
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _squares(
    tensors_ptr, tensor, begin, count, param, grad, velocity,
    W: tl.constexpr, G: tl.constexpr, REAL: tl.constexpr, WITH_VELOCITY: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.arange(0, BLOCK)
    inside = offsets < count
    w_ptr = _pointer(tensors_ptr, tensor, begin, 0, W, ALIGNED) + offsets
    g_ptr = _pointer(tensors_ptr, tensor, begin, 1, G, ALIGNED) + offsets
    w = tl.load(w_ptr, mask=inside, other=0.0).to(REAL)  # [BLOCK]
    d = tl.cast(grad, REAL) * tl.load(g_ptr, mask=inside, other=0.0).to(REAL)
    d += tl.cast(param, REAL) * w
    if WITH_VELOCITY:
        v_ptr = _pointer(tensors_ptr, tensor, begin, 2, REAL, ALIGNED) + offsets
        d += tl.cast(velocity, REAL) * tl.load(v_ptr, mask=inside, other=0.0)
    w = w.to(tl.float64)  # squares may leave float32's range
    d = d.to(tl.float64)
    return tl.sum(w * w), tl.sum(d * d)


@triton.jit
def _lars_step_norms_kernel(
    tensors_ptr,  # [TENSORS, FIELDS] i64: addresses of w, g, v and average; whether it is plain
    pieces_ptr,  # [PIECES, 3] i64: tensor, first element, elements
    squares_ptr,  # [PIECES, 2] f64: of the parameter and of what divides
    param: tl.float64,  # what divides is a sum of three with these factors
    grad: tl.float64,
    velocity: tl.float64,
    W: tl.constexpr,  # types of parameter and gradient
    G: tl.constexpr,
    REAL: tl.constexpr,
    WITH_VELOCITY: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    tensor = tl.load(pieces_ptr + 3 * piece)
    begin = tl.load(pieces_ptr + 3 * piece + 1)
    count = tl.load(pieces_ptr + 3 * piece + 2)
    if tl.load(tensors_ptr + FIELDS * tensor + 4) != 0:
        return  # a plain one needs no norms
    if count == BLOCK:  # known to be a whole number of vectors
        size, length = _squares(
            tensors_ptr, tensor, begin, BLOCK, param, grad, velocity,
            W, G, REAL, WITH_VELOCITY, ALIGNED, BLOCK,
        )  # fmt: skip
    else:
        size, length = _squares(
            tensors_ptr, tensor, begin, count, param, grad, velocity,
            W, G, REAL, WITH_VELOCITY, ALIGNED, BLOCK,
        )  # fmt: skip
    tl.store(squares_ptr + 2 * piece, size)
    tl.store(squares_ptr + 2 * piece + 1, length)


@triton.jit
def _lars_step_ratio_kernel(
    squares_ptr,  # [PIECES, 2] f64
    firsts_ptr,  # [TENSORS + 1] i64: each tensor's first piece
    ratios_ptr,  # [TENSORS] f64
    trust: tl.float64,
    eps: tl.float64,
    decay: tl.float64,  # of the parameter's norm beside what divides, with SEPARATE
    SEPARATE: tl.constexpr,
    SUMS: tl.constexpr,
):
    tensor = tl.program_id(0)
    first = tl.load(firsts_ptr + tensor)
    last = tl.load(firsts_ptr + tensor + 1)
    sizes = tl.zeros([SUMS], tl.float64)
    lengths = tl.zeros([SUMS], tl.float64)
    for begin in range(first, last, SUMS):
        pieces = begin + tl.arange(0, SUMS)
        sizes += tl.load(squares_ptr + 2 * pieces, mask=pieces < last, other=0.0)
        lengths += tl.load(squares_ptr + 2 * pieces + 1, mask=pieces < last, other=0.0)
    size = tl.sqrt(tl.sum(sizes))
    length = tl.sqrt(tl.sum(lengths))
    if SEPARATE:
        length += decay * size
    ratio = trust * size / (length + eps)
    tl.store(ratios_ptr + tensor, tl.where((size > 0) & (length > 0), ratio, 1.0))


@triton.jit
def _update(
    tensors_ptr, tensor, begin, count, gain, rate, momentum, decay, m,
    W: tl.constexpr, G: tl.constexpr, AVERAGE: tl.constexpr, REAL: tl.constexpr,
    NESTEROV: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    offsets = tl.arange(0, BLOCK)
    inside = offsets < count
    w_ptr = _pointer(tensors_ptr, tensor, begin, 0, W, ALIGNED) + offsets
    g_ptr = _pointer(tensors_ptr, tensor, begin, 1, G, ALIGNED) + offsets
    v_ptr = _pointer(tensors_ptr, tensor, begin, 2, REAL, ALIGNED) + offsets
    w = tl.load(w_ptr, mask=inside, other=0.0).to(REAL)  # [BLOCK]
    g = tl.load(g_ptr, mask=inside, other=0.0).to(REAL)
    v = tl.load(v_ptr, mask=inside, other=0.0)
    step = tl.cast(gain, REAL) * (g + tl.cast(decay, REAL) * w)
    v = tl.cast(momentum, REAL) * v + step
    tl.store(v_ptr, v, mask=inside)
    if NESTEROV:
        v = tl.cast(momentum, REAL) * v + step
    stored = narrow(w - tl.cast(rate, REAL) * v, W, INTERPRETED)
    tl.store(w_ptr, stored, mask=inside)
    if AVERAGE is not None:
        WIDE: tl.constexpr = tl.float64 if tl.float64 == AVERAGE else REAL
        a_ptr = _pointer(tensors_ptr, tensor, begin, 3, AVERAGE, ALIGNED) + offsets
        a = tl.load(a_ptr, mask=inside, other=0.0).to(WIDE)
        w = stored.to(WIDE)  # what others see of it
        near = 1 - m < 0.5  # each end is reached exactly, as the nearer one is where it starts from
        weight = tl.where(near, 1 - m, -m).to(WIDE)
        x = tl.where(near, a, w) + weight * (w - a)
        x = tl.where(m == 1, a, tl.where(m == 0, w, x))
        if tl.float64 != AVERAGE:
            x = x.to(tl.float32)
        tl.store(a_ptr, narrow(x, AVERAGE, INTERPRETED), mask=inside)


@triton.jit
def _lars_step_fwd_kernel(
    tensors_ptr,  # [TENSORS, FIELDS] i64
    pieces_ptr,  # [PIECES, 3] i64
    ratios_ptr,  # [TENSORS] f64, or None: all are 1
    lr_ptr,  # [] or None: 1
    ema_ptr,  # [] or None: 1
    factor: tl.float64,  # of lr
    momentum: tl.float64,
    decay: tl.float64,
    ema_factor: tl.float64,
    W: tl.constexpr,  # types of parameter, gradient, average
    G: tl.constexpr,
    AVERAGE: tl.constexpr,  # or None
    REAL: tl.constexpr,
    ORDER: tl.constexpr,
    NESTEROV: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    piece = tl.program_id(0)
    tensor = tl.load(pieces_ptr + 3 * piece)
    begin = tl.load(pieces_ptr + 3 * piece + 1)
    count = tl.load(pieces_ptr + 3 * piece + 2)
    lr = tl.cast(factor, tl.float64)
    if lr_ptr is not None:
        lr *= tl.load(lr_ptr).to(tl.float64)
    m = tl.cast(ema_factor, tl.float64)
    if ema_ptr is not None:
        m *= tl.load(ema_ptr).to(tl.float64)
    one = tl.full([], 1.0, tl.float64)
    ratio = tl.load(ratios_ptr + tensor) if ratios_ptr is not None else one
    if tl.load(tensors_ptr + FIELDS * tensor + 4) != 0:  # plain: neither adapted nor decayed
        ratio, decay = one, 0.0 * one
    if ORDER == "classic":
        gain, rate = lr * ratio, one
    elif ORDER == "torch":
        gain, rate = ratio, lr
    else:
        gain, rate = one, lr * ratio
    if count == BLOCK:  # known to be a whole number of vectors
        _update(
            tensors_ptr, tensor, begin, BLOCK, gain, rate, momentum, decay, m,
            W, G, AVERAGE, REAL, NESTEROV, ALIGNED, BLOCK, INTERPRETED,
        )  # fmt: skip
    else:
        _update(
            tensors_ptr, tensor, begin, count, gain, rate, momentum, decay, m,
            W, G, AVERAGE, REAL, NESTEROV, ALIGNED, BLOCK, INTERPRETED,
        )  # fmt: skip


class Options(NamedTuple):
    """What :func:`launch_lars_step_fwd` takes beside the tensors."""

    lr: Tensor | None
    factor: float
    momentum: float
    weight_decay: float
    trust_coefficient: float | None
    eps: float
    order: str
    nesterov: bool
    separate_norms: bool
    ema_scalar: Tensor | None
    ema_momentum: float

    @property
    def change(self) -> tuple[float, float, float]:
        """Factors of parameter, gradient and velocity in the vector whose norm divides."""
        if self.separate_norms:
            return 0.0, 1.0, 0.0
        if self.order != "popular":
            return self.weight_decay, 1.0, 0.0
        gained = 1 + self.momentum if self.nesterov else 1.0
        kept = self.momentum**2 if self.nesterov else self.momentum
        return gained * self.weight_decay, gained, kept


def launch_lars_step_fwd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    averages: Sequence[Tensor],
    *options,
) -> None:
    """Take a step, all in place; the options are those of :class:`Options`, in this order."""
    alike: dict[tuple, list[tuple[Tensor, ...]]] = {}
    copies = []
    for _, tensors in _not_empty(params, grads, velocities, averages):
        if not _laid_out_alike(tensors):
            made = tuple(t.contiguous() for t in tensors)
            copies += [(t, c) for t, c in zip(tensors, made, strict=True) if c is not t]
            tensors = made
        alike.setdefault(_dtypes(tensors), []).append(tensors)
    for group in alike.values():
        _Group(group).launch(Options(*options))
    for t, copy in copies:
        t.copy_(copy)


def prepare_lars_step_fwd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    averages: Sequence[Tensor],
    plain: Sequence[bool],
) -> Callable[..., None] | None:
    """What takes the same step again, given where the gradients then are and the options, as long
    as all else is as it is now, and lives; None where some tensors are copied on the way. Plain
    parameters are neither adapted nor decayed."""
    alike: dict[tuple, list[tuple[int, tuple[Tensor, ...]]]] = {}
    for i, tensors in _not_empty(params, grads, velocities, averages):
        if not _laid_out_alike(tensors):
            return None
        alike.setdefault(_dtypes(tensors), []).append((i, tensors))
    groups = [
        (
            [i for i, _ in held],
            _Group([tensors for _, tensors in held], [plain[i] for i, _ in held]),
        )
        for held in alike.values()
    ]
    last = [g.data_ptr() for g in grads]

    def launch(addresses: list[int], *options) -> None:
        nonlocal last
        moved, last = addresses != last, addresses
        for places, group in groups:
            if moved:
                group.move_gradients([addresses[i] for i in places])
            group.launch(Options(*options))

    return launch


def _not_empty(params, grads, velocities, averages) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Of each parameter: its place, and it, gradient, velocity, and an average that is another."""
    for i, w in enumerate(params):
        if w.numel():
            own = averages and averages[i].data_ptr() == w.data_ptr()
            yield i, (w, grads[i], velocities[i], *([] if own else averages[i : i + 1]))


def _laid_out_alike(tensors: tuple[Tensor, ...]) -> bool:
    w = tensors[0]
    return _dense(w) and all(t.stride() == w.stride() for t in tensors)


def _dtypes(tensors: tuple[Tensor, ...]) -> tuple[torch.dtype, ...]:
    return tuple(t.dtype for t in tensors)


class _Group:
    """Parameters with what goes with them, of the same dtypes each; the first of them is held."""

    def __init__(self, tensors: list[tuple[Tensor, ...]], plain: Sequence[bool] = ()) -> None:
        self.first = tensors[0][0]
        self.sizes = tuple(of[0].numel() for of in tensors)
        dtypes = _dtypes(tensors[0])
        self.average = TYPES[dtypes[3]] if len(dtypes) > 3 else None
        self.types = {"W": TYPES[dtypes[0]], "G": TYPES[dtypes[1]], "REAL": TYPES[dtypes[2]]}
        plain = plain or [False] * len(tensors)
        table = torch.tensor([[t.data_ptr() for t in (*of, self.first)[:4]] for of in tensors])
        self._place(torch.cat([table, torch.tensor(plain, dtype=torch.int64)[:, None]], 1))

    def _place(self, table: Tensor) -> None:
        self.table = table  # [TENSORS, FIELDS] i64 on the host
        self.key = tuple(table.flatten().tolist())
        self.aligned = not (table[:, :4] % 16).any().item()

    def move_gradients(self, addresses: list[int]) -> None:
        moved = self.table.clone()
        moved[:, 1] = torch.tensor(addresses)
        self._place(moved)

    def launch(self, options: Options) -> None:
        with torch.cuda.device_of(self.first):
            self._launch(options)

    def _launch(self, options: Options) -> None:
        first = self.first
        pieces = pieces_of(self.sizes, BLOCK, first.device)
        table = on_device(self.table, self.key, first)
        meta = self.types | {
            "ALIGNED": self.aligned,
            "BLOCK": BLOCK,
            "num_warps": WARPS,
            "enable_fp_fusion": True,
        }
        ratios = None
        if options.trust_coefficient is not None:
            squares = first.new_empty(len(pieces.rows), 2, dtype=torch.float64)
            ratios = first.new_empty(len(self.sizes), dtype=torch.float64)
            _lars_step_norms_kernel[(len(squares),)](
                table, pieces.rows, squares, *options.change,
                WITH_VELOCITY=options.order == "popular", **meta,
            )  # fmt: skip
            _lars_step_ratio_kernel[(len(ratios),)](
                squares, pieces.firsts, ratios, options.trust_coefficient, options.eps,
                options.weight_decay, SEPARATE=options.separate_norms, SUMS=SUMS,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        _lars_step_fwd_kernel[(len(pieces.rows),)](
            table, pieces.rows, ratios, options.lr, options.ema_scalar, options.factor,
            options.momentum, options.weight_decay, options.ema_momentum,
            AVERAGE=self.average, ORDER=options.order, NESTEROV=options.nesterov,
            INTERPRETED=chip._device(first).interpreted, **meta,
        )  # fmt: skip


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
