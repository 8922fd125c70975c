"""Launchers of ``similarity_lse`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Forward: norms; partial sums of 2^t by tiles; a pass that joins them into lse, pair and mean.
Backward: norms and softmax weights; one product per side; a pass that joins splits.
Nothing here waits for the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl_kernels.similarity_lse_both import (
    _similarity_lse_fwd_both_finish_kernel,
    _similarity_lse_fwd_both_kernel,
)
from fastssl_kernels.similarity_lse_bwd import (
    _similarity_lse_bwd_finish_kernel,
    _similarity_lse_bwd_kernel,
)
from fastssl_kernels.similarity_lse_fwd import (
    _similarity_lse_fwd_finish_columns_kernel,
    _similarity_lse_fwd_finish_kernel,
    _similarity_lse_fwd_kernel,
)
from fastssl_kernels.similarity_lse_mean import (
    _similarity_lse_fwd_mean_finish_kernel,
    _similarity_lse_fwd_mean_kernel,
)
from fastssl_kernels.similarity_lse_plan import (  # noqa: F401  (some for the ops beside this one)
    TILES,
    Device,
    _device,
    _launch,
    _Plan,
    _plan,
    _Problem,
    _problem,
    _rows,
    _Side,
)
from fastssl_kernels.similarity_lse_shapes import Tiles, cdiv
from fastssl_kernels.similarity_lse_triangle import (
    _similarity_lse_fwd_triangle_finish_kernel,
    _similarity_lse_fwd_triangle_kernel,
)

ROW_SUMS_BYTES = 2**28
SPLITS_BYTES = 2**27
FINISH_ROWS = 64  # what one warp group's matrix instruction takes
SLOTS = 32  # partial sums that a finishing pass takes at a time


def launch_similarity_lse_fwd(
    x: Tensor,  # [M, D]
    y: Tensor | None,  # [K, D]
    scale: Tensor | None,  # []
    factor: float,
    normalize: bool,
    self_offset: int | None,
    pair_offset: int | None,
    exclude_pair: bool,
    columns: bool,
    mean: bool,
    pairs: Tensor | None = None,  # [M, D]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse [M], pair [M], column_lse [K], all float64, and mean [M, D] float32; the last two are
    empty unless asked for, and the op never asks for both."""
    options = (factor, normalize, self_offset, pair_offset, exclude_pair)
    with torch.cuda.device_of(x):
        # The weights of a mean must not leave float16.
        unbounded = mean and x.dtype == torch.float16
        problem = _problem(x, y, scale, *options, unbounded=unbounded, pairs=pairs)
        lse = problem.base2.new_empty(len(x))
        pair = torch.empty_like(lse)
        column_lse = lse.new_empty(len(y) if columns else 0)
        means = lse.new_empty(x.shape if mean else 0, dtype=torch.float32)
        if mean:
            _fwd_mean(problem, lse, pair, means)
        elif problem.symmetric and problem.bounded and pairs is None:
            _fwd_triangle(problem, lse, pair)
        elif columns and pairs is None and normalize and x.element_size() == 2:
            _fwd_both(problem, lse, pair, column_lse)
        else:
            _fwd(problem, lse, pair, column_lse if columns else None)
    return lse, pair, column_lse, means


def _finish_flags(problem: _Problem, tiles: Tiles) -> dict:
    """Of the passes that take pairs."""
    return {
        "HAS_PAIR": problem.has_pair,
        "ROWS": FINISH_ROWS,
        "BLOCK_D": problem.plan.block_d(tiles),
        **{name: problem.flags[name] for name in ("D", "PRECISION", "INTERPRETED")},
    }


def _fwd_triangle(problem: _Problem, lse: Tensor, pair: Tensor) -> None:
    plan, (x, norm, *_), base2 = problem.plan, problem.rows, problem.base2
    m = len(x)
    tiles = problem.triangle
    blocks = cdiv(m, tiles.block_n)
    distances = blocks // 2 + 1
    # Very many rows: a group of distances at a time through one buffer.
    group = min(distances, max(1, ROW_SUMS_BYTES // (4 * m)))
    run, pieces = plan.cut(tiles, blocks, group, most=64)
    row_sums = lse.new_empty(group, m, dtype=torch.float32)
    column_sums = lse.new_empty(pieces, m, dtype=torch.float32)
    for first in range(0, distances, group):
        last = min(first + group, distances)
        _launch(
            _similarity_lse_fwd_triangle_kernel,
            (blocks, pieces),
            *(x, norm, base2, row_sums, column_sums, m, first, last, run),
            *problem.offsets,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **problem.flags,
        )
        _launch(
            _similarity_lse_fwd_triangle_finish_kernel,
            (cdiv(m, FINISH_ROWS),),
            *(x, row_sums, column_sums, norm, base2, lse, pair, m),
            *(first, last, pieces, problem.offsets[1]),
            BLOCK=tiles.block_n,
            SLOTS=SLOTS,
            FIRST=first == 0,
            LAST=last == distances,
            **_finish_flags(problem, tiles),
        )


def _fwd_both(problem: _Problem, lse: Tensor, pair: Tensor, column_lse: Tensor) -> None:
    plan, rows, columns, base2 = problem[:4]
    m, k = len(rows.x), len(columns.x)
    tiles = problem.triangle
    blocks, steps = cdiv(k, tiles.block_n), cdiv(m, tiles.block_m)
    # Very many columns: a group of their blocks at a time through one buffer.
    group = min(blocks, max(1, ROW_SUMS_BYTES // (4 * m)))
    run, pieces = plan.cut(tiles, group, steps)
    row_sums = lse.new_empty(group, m, dtype=torch.float32)
    column_sums = lse.new_empty(pieces, k, dtype=torch.float32)

    def finish(own, other, sums, segments, out, pair, **flags):
        _launch(
            _similarity_lse_fwd_both_finish_kernel,
            (cdiv(len(own.x), FINISH_ROWS),),
            *(own.x, other.x, own.norm, other.norm, base2, sums, out, pair),
            *(len(own.x), len(other.x), segments, *problem.offsets),
            BOUNDED=problem.bounded,
            SLOTS=SLOTS,
            **flags,
            **_finish_flags(problem, tiles),
            **{name: problem.flags[name] for name in ("HAS_SELF", "EXCLUDE_PAIR")},
        )

    for first in range(0, blocks, group):
        count = min(group, blocks - first)
        last = first + count == blocks
        _launch(
            _similarity_lse_fwd_both_kernel,
            (count, pieces),
            *(rows.x, columns.x, rows.norm, columns.norm, base2, row_sums, column_sums),
            *(m, k, first, run, *problem.offsets),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BOUNDED=problem.bounded,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **problem.flags,
        )
        pairs = pair if last else None
        finish(rows, columns, row_sums, count, lse, pairs, BY_OWN=True, FIRST=first == 0, LAST=last)
    finish(
        columns, rows, column_sums, pieces, column_lse, None, BY_OWN=False, FIRST=True, LAST=True
    )


def _fwd(problem: _Problem, lse: Tensor, pair: Tensor, column_lse: Tensor | None) -> None:
    plan, rows, columns, base2, paired = problem[:5]
    m, k = len(rows.x), len(columns.x)
    tiles = plan.tiles("fwd exact" if problem.exact else "fwd")
    blocks, steps = cdiv(m, tiles.block_m), cdiv(k, tiles.block_n)
    run, pieces = plan.cut(tiles, blocks, steps)
    vectors = (rows.x, columns.x, rows.norm, columns.norm, base2)
    sums, maxima = _sums(problem, pieces, m)
    column_sums = column_maxima = None
    group = blocks
    if column_lse is not None:
        # Very many rows: a group of their blocks at a time through one buffer.
        group = min(group, max(1, ROW_SUMS_BYTES // (2 * problem.wide.itemsize * k)))
        column_sums, column_maxima = _sums(problem, group, k)
    for first in range(0, blocks, group):
        count = min(group, blocks - first)
        _launch(
            _similarity_lse_fwd_kernel,
            (count, pieces),
            *(*vectors, sums, maxima, column_sums, column_maxima, m, k, first, run),
            *problem.offsets,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BOUNDED=problem.bounded,
            EXACT=problem.exact,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **problem.flags,
        )
        if column_lse is not None:
            _launch(
                _similarity_lse_fwd_finish_columns_kernel,
                (cdiv(k, FINISH_ROWS),),
                *(column_sums, column_maxima, column_lse, k, count),
                ROWS=FINISH_ROWS,
                SLOTS=SLOTS,
                FIRST=first == 0,
            )
    _launch(
        _similarity_lse_fwd_finish_kernel,
        (cdiv(m, FINISH_ROWS),),
        *(rows.x, paired.x, sums, maxima, rows.norm, paired.norm, base2, lse, pair),
        *(m, len(paired.x), pieces, problem.offsets[1]),
        SLOTS=SLOTS,
        **_finish_flags(problem, tiles),
    )


def _sums(problem: _Problem, parts: int, count: int) -> tuple[Tensor, Tensor | None]:
    """Room for partial sums and, unless there is no need, their maxima."""
    sums = problem.base2.new_empty(parts, count, dtype=problem.wide)
    return sums, None if problem.bounded else torch.empty_like(sums)


def _grouped(plan: _Plan, tiles: Tiles, m: int, k: int) -> tuple[int, int, int]:
    """For partial results [pieces, rows, D]: rows at a time, and the columns' steps and pieces."""
    blocks, steps = cdiv(m, tiles.block_m), cdiv(k, tiles.block_n)
    # Very many rows: a group of them at a time through one buffer.
    group = max(tiles.block_m, SPLITS_BYTES // (4 * plan.d) // tiles.block_m * tiles.block_m)
    most = max(1, min(64, group // m))
    # Writing and reading one piece's partial results, in steps of one tile product.
    cost = 2.0 * m / (tiles.block_m * tiles.block_n)
    blocks *= plan.chunks(tiles)
    return min(group, m), *plan.cut(tiles, blocks, steps, most, cost)


def _fwd_mean(problem: _Problem, lse: Tensor, pair: Tensor, mean: Tensor) -> None:
    plan, rows, columns, base2, paired = problem[:5]
    m, k = len(rows.x), len(columns.x)
    tiles = plan.tiles(problem.kind("mean"))
    group, run, pieces = _grouped(plan, tiles, m, k)
    sums, maxima = _sums(problem, pieces, m)
    partial = mean.new_empty(pieces, group, plan.d)
    for first in range(0, m, group):
        place = (first, min(group, m - first))
        _launch(
            _similarity_lse_fwd_mean_kernel,
            (cdiv(place[1], tiles.block_m), pieces, plan.chunks(tiles)),
            *(rows.x, columns.x, rows.norm, columns.norm, base2, sums, maxima, partial),
            *(m, k, *place, run, *problem.offsets),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BLOCK_OUT=plan.block_out(tiles),
            BOUNDED=problem.bounded,
            EXACT=problem.exact,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **problem.flags,
        )
        _launch(
            _similarity_lse_fwd_mean_finish_kernel,
            (place[1],),
            *(rows.x, paired.x, sums, maxima, partial, rows.norm, paired.norm, base2),
            *(lse, pair, mean, m, len(paired.x), *place, pieces, problem.offsets[1]),
            BLOCK_MEAN=plan.whole_d,
            SLOTS=max(1, min(SLOTS, 4096 // plan.whole_d)),
            num_warps=4,
            **_finish_flags(problem, tiles),
        )


def launch_similarity_lse_bwd(
    d_lse: Tensor,  # [M] f64
    d_pair: Tensor,  # [M] f64
    d_column_lse: Tensor | None,  # [K] f64
    x: Tensor,  # [M, D]
    y: Tensor | None,  # [K, D]
    scale: Tensor | None,  # []
    lse: Tensor,  # [M] f64
    column_lse: Tensor | None,  # [K] f64
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
    nothing = d_x = d_y = d_scale = x.new_empty(0)
    options = (factor, normalize, self_offset, pair_offset, exclude_pair)
    with torch.cuda.device_of(x):
        d_lse, d_pair = d_lse.contiguous(), d_pair.contiguous()
        column_sums = None
        if d_column_lse is not None:
            column_sums = (column_lse, d_column_lse.contiguous())
        problem = _problem(x, y, scale, *options, row_sums=(lse, d_lse), column_sums=column_sums)
        gain = _gain(problem, d_lse, d_column_lse) if x.dtype == torch.float16 else None
        if need_x or need_scale:
            flags = {"BY_OWN": True, "BY_OTHER": problem.symmetric}
            d_x, sum_g = _bwd(
                problem, problem.rows, problem.columns, gain, d_pair, flags, need_scale
            )
            if need_scale:
                d_scale = (sum_g * factor).to(scale.dtype)
        if need_y:
            flags = {"BY_OWN": False, "BY_OTHER": True}
            d_y, _ = _bwd(problem, problem.columns, problem.rows, gain, d_pair, flags, False)
    return d_x if need_x else nothing, d_y, d_scale


def _gain(problem: _Problem, d_lse: Tensor, d_column_lse: Tensor | None) -> Tensor:
    """A power of two that brings the entries of G into float16's narrow range.

    An entry is at most two of the largest upstream gradients times the largest inverse norm. The
    limit is 2^15; what lies 2^-39 below it is lost, far below the rounding of the rest.
    """
    inverse = torch.maximum(problem.rows.norm.amax(), problem.columns.norm.amax())
    upstream = d_lse.abs().amax()
    if d_column_lse is not None:
        upstream = torch.maximum(upstream, d_column_lse.abs().amax())
    largest = 2.0 * upstream * inverse
    return torch.exp2((15.0 - torch.log2(largest).ceil()).clamp(-60.0, 60.0)).float()


def _bwd(
    problem: _Problem,
    own: _Side,
    other: _Side,
    gain: Tensor | None,
    d_pair: Tensor,
    sides: dict[str, bool],
    need_scale: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of own vectors, and d_scale/factor if needed."""
    plan, base2 = problem.plan, problem.base2
    m, k = len(own.x), len(other.x)
    tiles = plan.tiles(problem.kind("bwd"))
    group, run, splits = _grouped(plan, tiles, m, k)
    partial = base2.new_empty(splits, group, plan.d, dtype=torch.float32)
    d_x = torch.empty_like(own.x)
    terms = []
    for first in range(0, m, group):
        count = min(group, m - first)
        d_scale = own.norm.new_empty(splits + 1, count) if need_scale else None
        place = (m, k, first, count)
        _launch(
            _similarity_lse_bwd_kernel,
            (cdiv(count, tiles.block_m), splits, plan.chunks(tiles)),
            *(own.x, other.x, own.norm, other.norm),
            *(own.weight, own.exponent, other.weight, other.exponent),
            *(gain, base2, partial, d_scale, *place, run, *problem.offsets),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BLOCK_OUT=plan.block_out(tiles),
            BOUNDED=problem.bounded,
            EXACT=problem.exact,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **sides,
            **problem.flags,
        )
        _launch(
            _similarity_lse_bwd_finish_kernel,
            (cdiv(count, plan.rows),),
            *(partial, own.x, other.x, own.norm, other.norm, d_pair, base2, d_x, d_scale),
            *(*place, splits, problem.offsets[1]),
            D=plan.d,
            BLOCK_D=plan.whole_d,
            ROWS=plan.rows,
            NORMALIZE=problem.normalize,
            HAS_PAIR=problem.has_pair,
            INTERPRETED=plan.device.interpreted,
            num_warps=4,
            **sides,
        )
        if need_scale:
            terms.append(d_scale.sum(dtype=torch.float64))
    return d_x, sum(terms) if need_scale else None
