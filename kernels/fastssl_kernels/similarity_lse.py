"""Launchers of ``similarity_lse`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Forward: inverse norms; partial sums of 2^t by tiles; one pass that joins them into lse and pair.
Backward: norms and softmax weights; one product per side; a pass that joins splits, if any.
Nothing here waits for the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastssl_kernels.similarity_lse_bwd import (
    _similarity_lse_bwd_finish_kernel,
    _similarity_lse_bwd_kernel,
)
from fastssl_kernels.similarity_lse_fwd import (
    _similarity_lse_fwd_finish_kernel,
    _similarity_lse_fwd_kernel,
    _similarity_lse_fwd_triangle_finish_kernel,
    _similarity_lse_fwd_triangle_kernel,
)
from fastssl_kernels.similarity_lse_shapes import TILES, Tiles
from fastssl_kernels.similarity_lse_tiles import _similarity_lse_rows_kernel

# With |t| up to this, 2^t and sums of it stay well inside float32, without a running maximum.
BOUND = 64.0
WIDEST = 256  # features that a tile holds whole; wider vectors go by chunks
ROW_SUMS_BYTES = 2**28
SPLITS_BYTES = 2**27
FINISH_ROWS = 64  # what one warp group's matrix instruction takes


class Device(NamedTuple):
    """What the choice of tiles depends on."""

    hopper: bool
    processors: int
    interpreted: bool = False


def _device(x: Tensor) -> Device:
    if x.device.type == "cpu":
        return Device(hopper=True, processors=8, interpreted=True)
    return _cuda_device(x.device.index)


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    hopper = properties.shared_memory_per_block_optin >= 227 * 1024
    return Device(hopper, properties.multi_processor_count)


def _launch(kernel, grid, *args, **meta) -> None:
    # A logit must be rounded alike wherever it is recomputed: no fusing into multiply-adds.
    kernel[grid](*args, enable_fp_fusion=False, **meta)


class _Plan(NamedTuple):
    """How a tensor's width is laid over tiles."""

    device: Device
    d: int
    whole_d: int  # d, as a power of two
    key: int
    width: int
    precision: str

    def tiles(self, kind: str) -> Tiles:
        return TILES[self.device.hopper][kind, self.width, self.key]

    def block_d(self, tiles: Tiles) -> int:
        return min(self.whole_d, tiles.step or self.whole_d)

    @property
    def rows(self) -> int:
        """Rows a program takes in the passes that hold whole vectors."""
        return max(1, min(64, 4096 // self.whole_d))


def _plan(x: Tensor) -> _Plan:
    device = _device(x)
    d = x.shape[1]
    whole_d = max(16, triton.next_power_of_2(d))
    return _Plan(
        device=device,
        d=d,
        whole_d=whole_d,
        key=max(64, whole_d) if whole_d <= WIDEST else 0,
        width=x.element_size(),
        # Single TF32 products would cost half the digits of float32 inputs.
        precision="tf32x3" if x.dtype == torch.float32 else "ieee",
    )


@functools.lru_cache(maxsize=4096)
def _pieces(blocks: int, steps: int, places: int, most: int, cost: float) -> int:
    """Into how many pieces to cut ``steps`` so that blocks · pieces programs fill the chip.

    A piece costs about one step to begin, and ``cost`` steps afterwards for all of them.
    """

    def time(pieces: int) -> float:
        waves = math.ceil(blocks * pieces / places)
        return waves * (math.ceil(steps / pieces) + 1) + cost * (pieces - 1)

    return min(range(1, max(1, min(steps, most)) + 1), key=time)


def _bounded(scale: Tensor | None, factor: float, normalize: bool) -> bool:
    """Whether the host knows that no logit needs a running maximum."""
    return normalize and scale is None and abs(factor) * math.log2(math.e) <= BOUND


def _rows(plan, x, normalize, bounded, lse=None, d_lse=None, base2=None, scale=None, factor=1.0):
    """Inverse norms [M], and weights and exponents [M] where there are gradients; fills base2."""
    m = x.shape[0]
    norm = x.new_empty(m, dtype=torch.float32)
    weight = exponent = None
    if lse is not None:
        weight = torch.empty_like(norm)
        exponent = None if bounded else torch.empty_like(norm)
    _launch(
        _similarity_lse_rows_kernel,
        (triton.cdiv(m, plan.rows),),
        *(x, norm, lse, d_lse, weight, exponent, scale, base2, factor, m),
        D=plan.d,
        BLOCK_D=plan.whole_d,
        ROWS=plan.rows,
        NORMALIZE=normalize,
        BOUNDED=bounded,
        num_warps=4,
    )
    return norm, weight, exponent


def launch_similarity_lse_fwd(
    x: Tensor,  # [M, D]
    y: Tensor | None,  # [K, D]
    scale: Tensor | None,  # []
    factor: float,
    normalize: bool,
    self_offset: int | None,
    pair_offset: int | None,
    exclude_pair: bool,
) -> tuple[Tensor, Tensor]:
    """lse and pair, both [M] float64."""
    with torch.cuda.device_of(x):
        plan = _plan(x)
        x = x.contiguous()
        bounded = _bounded(scale, factor, normalize)
        base2 = x.new_empty(1, dtype=torch.float32)
        x_norm = _rows(plan, x, normalize, bounded, base2=base2, scale=scale, factor=factor)[0]
        offsets = (self_offset or 0, pair_offset or 0)
        common = {
            "D": plan.d,
            "PRECISION": plan.precision,
            "INTERPRETED": plan.device.interpreted,
        }
        flags = {"HAS_SELF": self_offset is not None, "EXCLUDE_PAIR": exclude_pair, **common}
        finish = {"HAS_PAIR": pair_offset is not None, "ROWS": FINISH_ROWS, **common}
        if y is None and bounded:
            return _fwd_triangle(plan, x, x_norm, base2, offsets, flags, finish)
        y_norm = x_norm
        if y is not None:
            y = y.contiguous()
            y_norm = _rows(plan, y, normalize, bounded)[0]
        sides = (x, x if y is None else y, x_norm, y_norm)
        return _fwd(plan, *sides, base2, bounded, offsets, flags, finish)


def _fwd_triangle(plan, x, norm, base2, offsets, flags, finish):
    m = x.shape[0]
    tiles = plan.tiles("triangle")
    finish = {**finish, "BLOCK_D": plan.block_d(tiles)}
    blocks = triton.cdiv(m, tiles.block_m)
    distances = blocks // 2 + 1
    # Very many rows: a group of distances at a time through one buffer.
    group = min(distances, max(1, ROW_SUMS_BYTES // (4 * m)))
    places = plan.device.processors * tiles.per_processor
    pieces = _pieces(blocks, group, places, 64, 0.0)
    run = triton.cdiv(group, pieces)
    pieces = triton.cdiv(group, run)
    row_sums = norm.new_empty(group, m)
    column_sums = norm.new_empty(pieces, m)
    lse = norm.new_empty(m, dtype=torch.float64)
    pair = torch.empty_like(lse)
    for first in range(0, distances, group):
        last = min(first + group, distances)
        _launch(
            _similarity_lse_fwd_triangle_kernel,
            (blocks, pieces),
            *(x, norm, base2, row_sums, column_sums, m, first, last, run),
            *offsets,
            BLOCK=tiles.block_m,
            BLOCK_D=plan.block_d(tiles),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **flags,
        )
        _launch(
            _similarity_lse_fwd_triangle_finish_kernel,
            (triton.cdiv(m, FINISH_ROWS),),
            *(x, row_sums, column_sums, norm, base2, lse, pair, m),
            *(first, last, pieces, offsets[1]),
            BLOCK=tiles.block_m,
            SLOTS=32,
            FIRST=first == 0,
            LAST=last == distances,
            **finish,
        )
    return lse, pair


def _fwd(plan, x, y, x_norm, y_norm, base2, bounded, offsets, flags, finish):
    m, k = x.shape[0], y.shape[0]
    tiles = plan.tiles("fwd")
    finish = {**finish, "BLOCK_D": plan.block_d(tiles)}
    blocks, steps = triton.cdiv(m, tiles.block_m), triton.cdiv(k, tiles.block_n)
    places = plan.device.processors * tiles.per_processor
    pieces = _pieces(blocks, steps, places, 512, 0.0)
    run = triton.cdiv(steps, pieces)
    pieces = triton.cdiv(steps, run)
    sums = x_norm.new_empty(pieces, m)
    maxima = None if bounded else torch.empty_like(sums)
    lse = x_norm.new_empty(m, dtype=torch.float64)
    pair = torch.empty_like(lse)
    _launch(
        _similarity_lse_fwd_kernel,
        (blocks, pieces),
        *(x, y, x_norm, y_norm, base2, sums, maxima, m, k, run),
        *offsets,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BOUNDED=bounded,
        BLOCK_D=plan.block_d(tiles),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        **flags,
    )
    _launch(
        _similarity_lse_fwd_finish_kernel,
        (triton.cdiv(m, FINISH_ROWS),),
        *(x, y, sums, maxima, x_norm, y_norm, base2, lse, pair, m, k),
        *(pieces, offsets[1]),
        BOUNDED=bounded,
        **finish,
    )
    return lse, pair


def launch_similarity_lse_bwd(
    d_lse: Tensor,  # [M] f64
    d_pair: Tensor,  # [M] f64
    x: Tensor,  # [M, D]
    y: Tensor | None,  # [K, D]
    scale: Tensor | None,  # []
    lse: Tensor,  # [M] f64
    factor: float,
    normalize: bool,
    self_offset: int | None,
    pair_offset: int | None,
    exclude_pair: bool,
    need_x: bool,
    need_y: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_x, d_y, d_scale like x, y and scale; empty where not needed."""
    nothing = x.new_empty(0)
    with torch.cuda.device_of(x):
        plan = _plan(x)
        x = x.contiguous()
        d_lse, d_pair = d_lse.contiguous(), d_pair.contiguous()
        bounded = _bounded(scale, factor, normalize)
        base2 = x.new_empty(1, dtype=torch.float32)
        facts = _rows(plan, x, normalize, bounded, lse, d_lse, base2, scale, factor)
        rows = _Side(x, *facts)
        columns = rows
        if y is not None:
            y = y.contiguous()
            columns = _Side(y, *_rows(plan, y, normalize, bounded))
        gain = _gain(d_lse, rows, columns) if x.dtype == torch.float16 else None
        common = (plan, gain, d_pair, base2, (self_offset or 0, pair_offset or 0))
        flags = {
            "BOUNDED": bounded,
            "NORMALIZE": normalize,
            "HAS_SELF": self_offset is not None,
            "HAS_PAIR": pair_offset is not None,
            "EXCLUDE_PAIR": exclude_pair,
        }
        d_x = d_y = d_scale = nothing
        if need_x or need_scale:
            flags_x = {**flags, "BY_OWN": True, "BY_OTHER": y is None}
            d_x, d_scale = _bwd(rows, columns, *common, flags_x, need_scale)
            if need_scale:
                d_scale = (d_scale * factor).to(scale.dtype)
        if need_y:
            d_y = _bwd(columns, rows, *common, {**flags, "BY_OWN": False, "BY_OTHER": True}, False)[
                0
            ]
    return d_x if need_x else nothing, d_y, d_scale if need_scale else nothing


class _Side(NamedTuple):
    """Rows or columns of the matrix, with what the kernels need to know of each vector."""

    x: Tensor
    norm: Tensor
    weight: Tensor | None
    exponent: Tensor | None


def _gain(d_lse: Tensor, rows: _Side, columns: _Side) -> Tensor:
    """A power of two that brings the entries of G into float16's narrow range.

    An entry is at most twice the largest |d_lse| times the largest inverse norm. The limit is
    2^15; what lies 2^-39 below it is lost, far below the rounding of the rest.
    """
    inverse = torch.maximum(rows.norm.amax(), columns.norm.amax())
    largest = 2.0 * d_lse.abs().amax() * inverse
    return torch.exp2((15.0 - torch.log2(largest).ceil()).clamp(-60.0, 60.0)).float()


def _bwd(own, other, plan, gain, d_pair, base2, offsets, flags, need_scale):
    """The gradient of own vectors, and d_scale/factor if needed."""
    m, k = own.x.shape[0], other.x.shape[0]
    bounded = flags["BOUNDED"]
    common = {
        "D": plan.d,
        "INTERPRETED": plan.device.interpreted,
        "BY_OWN": flags["BY_OWN"],
        "BY_OTHER": flags["BY_OTHER"],
    }
    tiles = plan.tiles("bwd" if bounded else "bwd safe")
    block_out = plan.whole_d if plan.whole_d <= WIDEST // (plan.width // 2) else 128
    chunks = triton.cdiv(plan.d, block_out)
    blocks, steps = triton.cdiv(m, tiles.block_m), triton.cdiv(k, tiles.block_n)
    places = plan.device.processors * tiles.per_processor
    # Very many rows: a group of them at a time through one buffer.
    group = max(tiles.block_m, SPLITS_BYTES // (4 * plan.d) // tiles.block_m * tiles.block_m)
    most = max(1, min(64, group // m))
    # Writing and reading one split's partial gradient, in steps of one tile product.
    cost = 2.0 * m / (tiles.block_m * tiles.block_n)
    splits = _pieces(blocks * chunks, steps, places, most, cost)
    run = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, run)
    group = min(group, m)
    partial = own.norm.new_empty(splits, group, plan.d)
    d_x = torch.empty_like(own.x)
    terms = []
    for first in range(0, m, group):
        count = min(group, m - first)
        d_scale = own.norm.new_empty(splits + 1, count) if need_scale else None
        place = (m, k, first, count)
        _launch(
            _similarity_lse_bwd_kernel,
            (triton.cdiv(count, tiles.block_m), splits, chunks),
            *(own.x, other.x, own.norm, other.norm),
            *(own.weight, own.exponent, other.weight, other.exponent),
            *(gain, base2, partial, d_scale, *place, run, *offsets),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BLOCK_OUT=block_out,
            BOUNDED=bounded,
            HAS_SELF=flags["HAS_SELF"],
            EXCLUDE_PAIR=flags["EXCLUDE_PAIR"],
            PRECISION=plan.precision,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **common,
        )
        _launch(
            _similarity_lse_bwd_finish_kernel,
            (triton.cdiv(count, plan.rows),),
            *(partial, own.x, other.x, own.norm, other.norm, d_pair, base2, d_x, d_scale),
            *(*place, splits, offsets[1]),
            BLOCK_D=plan.whole_d,
            ROWS=plan.rows,
            NORMALIZE=flags["NORMALIZE"],
            HAS_PAIR=flags["HAS_PAIR"],
            num_warps=4,
            **common,
        )
        if need_scale:
            terms.append(d_scale.sum(dtype=torch.float64))
    return d_x, sum(terms)
