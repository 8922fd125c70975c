"""``ema_update`` on CUDA (and, under Triton's interpreter, CPU) tensors: one launch for all.

Each program takes one row of a table in device memory: a stretch of a target and of its source,
and what they hold. The table is kept, by the addresses, lengths and dtypes that it was made of,
which are looked at anew at every call. Nothing here waits for the device, and every result is
bitwise repeatable.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

import fastssl_kernels.similarity_lse_plan as chip
from fastssl_kernels.similarity_lse_tiles import narrow

BLOCK = 4096  # elements of a row
WARPS = 8  # so that each thread has four vectors of either tensor under way
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
COPY = 64  # the kind of a row whose bytes are copied; others': target's + 8 · source's
MIXED = -1


@triton.jit
def _read_as(address, offsets, inside, REAL: tl.constexpr, TYPE: tl.constexpr, A: tl.constexpr):
    pointer = tl.multiple_of(address.to(tl.pointer_type(TYPE)), A)
    return tl.load(pointer + offsets, mask=inside).to(REAL)


@triton.jit
def _read(address, kind, offsets, inside, REAL: tl.constexpr, ONLY: tl.constexpr, A: tl.constexpr):
    """As REAL, what holds floats of the kind; ONLY the one kind there is, or MIXED."""
    if ONLY == 0:
        x = _read_as(address, offsets, inside, REAL, tl.float32, A)
    elif ONLY == 1:
        x = _read_as(address, offsets, inside, REAL, tl.bfloat16, A)
    elif ONLY == 2:
        x = _read_as(address, offsets, inside, REAL, tl.float16, A)
    elif ONLY == 3:
        x = _read_as(address, offsets, inside, REAL, tl.float64, A)
    else:
        x = tl.zeros_like(offsets).to(REAL)
        if kind == 0:
            x = _read_as(address, offsets, inside, REAL, tl.float32, A)
        elif kind == 1:
            x = _read_as(address, offsets, inside, REAL, tl.bfloat16, A)
        elif kind == 2:
            x = _read_as(address, offsets, inside, REAL, tl.float16, A)
        elif REAL.is_fp64():
            x = _read_as(address, offsets, inside, REAL, tl.float64, A)
    return x


@triton.jit
def _write_as(address, offsets, x, inside, TYPE: tl.constexpr, A: tl.constexpr, IN: tl.constexpr):
    pointer = tl.multiple_of(address.to(tl.pointer_type(TYPE)), A)
    if TYPE.primitive_bitwidth == 16:
        x = narrow(x.to(tl.float32), TYPE, IN)
    tl.store(pointer + offsets, x.to(TYPE), mask=inside)


@triton.jit
def _write(
    address, kind, offsets, x, inside, ONLY: tl.constexpr, A: tl.constexpr, IN: tl.constexpr
):
    if ONLY == 0:
        _write_as(address, offsets, x, inside, tl.float32, A, IN)
    elif ONLY == 1:
        _write_as(address, offsets, x, inside, tl.bfloat16, A, IN)
    elif ONLY == 2:
        _write_as(address, offsets, x, inside, tl.float16, A, IN)
    elif ONLY == 3:
        _write_as(address, offsets, x, inside, tl.float64, A, IN)
    elif kind == 0:
        _write_as(address, offsets, x, inside, tl.float32, A, IN)
    elif kind == 1:
        _write_as(address, offsets, x, inside, tl.bfloat16, A, IN)
    elif kind == 2:
        _write_as(address, offsets, x, inside, tl.float16, A, IN)
    elif x.dtype == tl.float64:
        _write_as(address, offsets, x, inside, tl.float64, A, IN)


@triton.jit
def _step(
    target, source, kind, offsets, inside, m,
    REAL: tl.constexpr, T: tl.constexpr, S: tl.constexpr, A: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    t = _read(target, kind % 8, offsets, inside, REAL, T, A)  # [BLOCK]
    s = _read(source, kind // 8, offsets, inside, REAL, S, A)
    near = 1 - m < 0.5  # each end is reached exactly, as the nearer one is where it starts from
    weight = tl.where(near, 1 - m, -m).to(REAL)
    x = tl.where(near, t, s) + weight * (s - t)
    x = tl.where(m == 1, t, tl.where(m == 0, s, x))
    _write(target, kind % 8, offsets, x, inside, T, A, IN)


@triton.jit
def _row(
    target, source, kind, offsets, inside, m,
    T: tl.constexpr, S: tl.constexpr, DOUBLES: tl.constexpr, A: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    if not DOUBLES:
        _step(target, source, kind, offsets, inside, m, tl.float32, T, S, A, IN)
    elif (kind % 8 == 3) | (kind // 8 == 3):
        _step(target, source, kind, offsets, inside, m, tl.float64, T, S, A, IN)
    else:
        _step(target, source, kind, offsets, inside, m, tl.float32, T, S, A, IN)


@triton.jit
def _ema_update_fwd_kernel(
    table_ptr,  # [ROWS, 4] i64: addresses of target and source, elements or bytes, kind
    scalar_ptr,  # [] m, or None
    momentum: tl.float64,  # m, where there is no scalar
    T: tl.constexpr,  # the only kind of float target, or MIXED
    S: tl.constexpr,  # ... source
    DOUBLES: tl.constexpr,  # some are computed in float64: of a mixture, those that need it
    A: tl.constexpr,  # that divides every address
    BLOCK: tl.constexpr,
    IN: tl.constexpr,  # whether this is interpreted
):
    row = table_ptr + 4 * tl.program_id(0)
    target, source = tl.load(row), tl.load(row + 1)
    count, kind = tl.load(row + 2), tl.load(row + 3)
    m = momentum
    if scalar_ptr is not None:
        m = tl.load(scalar_ptr).to(tl.float64)
    offsets = tl.arange(0, BLOCK)
    if kind == 64:
        x = _read_as(source, offsets, offsets < count, tl.uint8, tl.uint8, 1)
        _write_as(target, offsets, x, offsets < count, tl.uint8, 1, IN)
    elif count == BLOCK:  # without a mask, and so by whole vectors
        _row(target, source, kind, offsets, None, m, T, S, DOUBLES, A, IN)
    else:
        _row(target, source, kind, offsets, offsets < count, m, T, S, DOUBLES, A, IN)


def launch_ema_update_fwd(
    targets: Sequence[Tensor], sources: Sequence[Tensor], scalar: Tensor | None, momentum: float
) -> None:
    """Update all targets in place; ``scalar`` takes the place of ``momentum``."""
    pairs, copies = [], []
    for target, source in zip(targets, sources, strict=True):
        if target.data_ptr() == source.data_ptr():
            continue  # nothing to do, also where nothing is there
        if not _laid_out_alike(target, source):
            t, source = target.contiguous(), source.contiguous()
            if t is not target:
                copies.append((target, t))
            target = t
        pairs.append((target, source))
    _launch(pairs)(scalar, momentum)
    for target, t in copies:
        target.copy_(t)


def prepare_ema_update_fwd(
    targets: Sequence[Tensor], sources: Sequence[Tensor]
) -> Callable[[Tensor | None, float], None] | None:
    """What launches the same update again, as long as every tensor is as it is now, and lives; None
    where some are copied on the way."""
    pairs = [(t, s) for t, s in zip(targets, sources, strict=True) if t.data_ptr() != s.data_ptr()]
    return _launch(pairs) if all(itertools.starmap(_laid_out_alike, pairs)) else None


def _launch(pairs: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor | None, float], None]:
    if not pairs:
        return lambda scalar, momentum: None
    device = pairs[0][0].device
    interpreted = chip._device(pairs[0][0]).interpreted
    key = tuple((t.data_ptr(), s.data_ptr(), t.numel(), t.dtype, s.dtype) for t, s in pairs)
    table = _table(key, device, BLOCK)

    def launch(scalar: Tensor | None, momentum: float) -> None:
        if device.type == "cuda":
            _hold(table, device)
        if interpreted and scalar is None:  # to which a float is a float32
            scalar = torch.tensor(momentum, dtype=torch.float64)
        with torch.cuda.device_of(table.rows):
            _ema_update_fwd_kernel[(len(table.rows),)](
                table.rows, scalar, momentum, *table.kinds, table.aligned,
                BLOCK, interpreted, num_warps=WARPS,
            )  # fmt: skip

    return launch


def _hold(table: _Table, device: torch.device) -> None:
    """So that a table dropped meanwhile is not overwritten before it is read."""
    if torch.cuda.is_current_stream_capturing():
        _captured.append(table)  # a graph may be replayed as long as the process lives
        return
    stream = torch.cuda.current_stream(device)
    if stream.cuda_stream not in table.streams:
        table.streams.add(stream.cuda_stream)
        table.rows.record_stream(stream)


class _Table(NamedTuple):
    rows: Tensor  # [ROWS, 4]
    kinds: tuple[int, int, bool]  # T, S, DOUBLES
    aligned: int
    streams: set[int]  # that have read the rows


_captured: list[_Table] = []


@functools.lru_cache(maxsize=64)
def _table(key: tuple, device: torch.device, block: int) -> _Table:
    """The rows for pairs (target's address, source's, elements, target's dtype, source's): on the
    device when this returns, and so for every stream."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "ema_update: these tensors were not seen before this CUDA graph's capture, in which "
            "nothing can be sent to the device; run the step once before"
        )
    pairs = torch.tensor([_pair(*pair) for pair in key])  # [PAIRS, 6] i64
    targets, sources, counts, kinds, target_bytes, source_bytes = pairs.unbind(1)
    pieces = (counts + block - 1) // block  # [PAIRS]
    pair = torch.arange(len(pairs)).repeat_interleave(pieces)  # [ROWS]
    begin = (torch.arange(len(pair)) - (pieces.cumsum(0) - pieces)[pair]) * block
    rows = [
        targets[pair] + begin * target_bytes[pair],
        sources[pair] + begin * source_bytes[pair],
        (counts[pair] - begin).clamp(max=block),
        kinds[pair],
    ]
    floats = kinds[kinds != COPY]
    held = [(floats % 8).unique(), (floats // 8).unique()]
    only = [k[0].item() if len(k) == 1 else MIXED for k in held]
    doubles = any((k == KINDS[torch.float64]).any().item() for k in held)
    addresses = pairs[kinds != COPY, :2]
    return _Table(
        torch.stack(rows, 1).to(device),
        (*only, doubles),
        16 if not (addresses % 16).any() else 1,
        set(),
    )


def _pair(
    target: int, source: int, count: int, dtype: torch.dtype, source_dtype: torch.dtype
) -> tuple[int, ...]:
    """Addresses, elements, kind, and bytes of an element of target and source."""
    if dtype not in KINDS:
        return target, source, count * dtype.itemsize, COPY, 1, 1
    kind = KINDS[dtype] + 8 * KINDS[source_dtype]
    return target, source, count, kind, dtype.itemsize, source_dtype.itemsize


def _laid_out_alike(target: Tensor, source: Tensor) -> bool:
    """Whether the elements fill two stretches of memory in one order."""
    if target.stride() != source.stride():
        return False
    last = target.dim() == 4 and target.is_contiguous(memory_format=torch.channels_last)
    return last or target.is_contiguous()
