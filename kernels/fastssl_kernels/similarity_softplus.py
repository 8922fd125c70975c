"""Launchers of ``similarity_softplus`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Forward: inverse norms; partial sums by tiles; one pass that joins them and takes the pairs.
Backward: inverse norms; one product per side; a pass that joins splits, if any.
Nothing here waits for the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl_kernels.similarity_lse import _finish_flags, _gain, _grouped
from fastssl_kernels.similarity_lse_bwd import _similarity_lse_bwd_finish_kernel
from fastssl_kernels.similarity_lse_plan import _launch, _Problem, _problem, _Side
from fastssl_kernels.similarity_lse_shapes import cdiv
from fastssl_kernels.similarity_softplus_kernels import (
    _similarity_softplus_bwd_kernel,
    _similarity_softplus_fwd_finish_kernel,
    _similarity_softplus_fwd_kernel,
)

SLOTS = 16  # partial sums that the finishing pass takes at a time


def launch_similarity_softplus_fwd(
    x: Tensor,  # [M, D]
    y: Tensor,  # [K, D]
    scale: Tensor | None,  # []
    bias: Tensor | None,  # []
    factor: float,
    shift: float,
    normalize: bool,
    pair_offset: int | None,
    exclude_pair: bool,
) -> tuple[Tensor, Tensor]:
    """total and pair, both [M] float64."""
    with torch.cuda.device_of(x):
        problem = _problem(x, y, scale, factor, normalize, None, pair_offset, exclude_pair)
        plan, rows, columns, base2 = problem[:4]
        m, k = len(x), len(y)
        tiles = plan.tiles("softplus fwd")
        blocks, steps = cdiv(m, tiles.block_m), cdiv(k, tiles.block_n)
        run, pieces = plan.cut(tiles, blocks, steps)
        sums = base2.new_empty(pieces, m, dtype=torch.float32)
        total = base2.new_empty(m)
        pair = torch.empty_like(total)
        vectors = (rows.x, columns.x, rows.norm, columns.norm, base2)
        _launch(
            _similarity_softplus_fwd_kernel,
            (blocks, pieces),
            *(*vectors, bias, sums, shift, m, k, run, problem.offsets[1]),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **_flags(problem),
        )
        finish = _finish_flags(problem, tiles)
        _launch(
            _similarity_softplus_fwd_finish_kernel,
            (cdiv(m, finish["ROWS"]),),
            *(*vectors, sums, total, pair, m, k, pieces, problem.offsets[1]),
            SLOTS=SLOTS,
            **finish,
        )
        if pair_offset is not None:
            pair += shift if bias is None else bias
    return total, pair


def launch_similarity_softplus_bwd(
    d_total: Tensor,  # [M] f64
    d_pair: Tensor,  # [M] f64
    x: Tensor,  # [M, D]
    y: Tensor,  # [K, D]
    scale: Tensor | None,  # []
    bias: Tensor | None,  # []
    factor: float,
    shift: float,
    normalize: bool,
    pair_offset: int | None,
    exclude_pair: bool,
    need_x: bool,
    need_y: bool,
    need_scale: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_x, d_y, d_scale, d_bias like x, y, scale and bias; empty where not needed."""
    d_x = d_y = d_scale = d_bias = x.new_empty(0)
    with torch.cuda.device_of(x):
        problem = _problem(x, y, scale, factor, normalize, None, pair_offset, exclude_pair)
        gain = _gain(problem, d_total, None) if x.dtype == torch.float16 else None
        given = (bias, shift, d_total.contiguous(), d_pair.contiguous(), gain)
        if need_x or need_scale or need_bias:
            d_rows, scale_sum, bias_sum = _bwd(
                problem, problem.rows, problem.columns, *given, need_scale, need_bias
            )
            if need_x:
                d_x = d_rows
            if need_scale:
                d_scale = (scale_sum * factor).to(scale.dtype)
            if need_bias:
                pairs = 0.0 if pair_offset is None else d_pair.sum()
                d_bias = (bias_sum + pairs).to(bias.dtype)
        if need_y:
            d_y, _, _ = _bwd(problem, problem.columns, problem.rows, *given, False, False)
    return d_x, d_y, d_scale, d_bias


def _flags(problem: _Problem) -> dict:
    """Of the kernels that take logits: no row leaves itself out here."""
    return {name: flag for name, flag in problem.flags.items() if name != "HAS_SELF"}


def _bwd(
    problem: _Problem,
    own: _Side,
    other: _Side,
    bias: Tensor | None,
    shift: float,
    d_total: Tensor,
    d_pair: Tensor,
    gain: Tensor | None,
    need_scale: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient of own vectors, and d_scale/factor and the sum of all G if needed."""
    plan, base2, by_rows = problem.plan, problem.base2, own is problem.rows
    m, k = len(own.x), len(other.x)
    tiles = plan.tiles("softplus bwd")
    group, run, splits = _grouped(plan, tiles, m, k)
    partial = base2.new_empty(splits, group, plan.d, dtype=torch.float32)
    d_own = torch.empty_like(own.x)
    scale_terms, bias_terms = [], []
    for first in range(0, m, group):
        count = min(group, m - first)
        d_scale = own.norm.new_empty(splits + 1, count) if need_scale else None
        d_bias = partial.new_empty(splits, count) if need_bias else None
        place = (m, k, first, count)
        _launch(
            _similarity_softplus_bwd_kernel,
            (cdiv(count, tiles.block_m), splits, plan.chunks(tiles)),
            *(own.x, other.x, own.norm, other.norm, base2, bias, d_total, gain),
            *(partial, d_scale, d_bias, shift, *place, run, problem.offsets[1]),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BLOCK_OUT=plan.block_out(tiles),
            BY_OWN=by_rows,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **_flags(problem),
        )
        _launch(
            _similarity_lse_bwd_finish_kernel,
            (cdiv(count, plan.rows),),
            *(partial, own.x, other.x, own.norm, other.norm, d_pair, base2, d_own, d_scale),
            *(*place, splits, problem.offsets[1]),
            D=plan.d,
            BLOCK_D=plan.whole_d,
            ROWS=plan.rows,
            BY_OWN=by_rows,
            BY_OTHER=not by_rows,
            NORMALIZE=problem.normalize,
            HAS_PAIR=problem.has_pair,
            INTERPRETED=plan.device.interpreted,
            num_warps=4,
        )
        if need_scale:
            scale_terms.append(d_scale.sum(dtype=torch.float64))
        if need_bias:
            bias_terms.append(d_bias.sum(dtype=torch.float64))
    return (
        d_own,
        sum(scale_terms) if need_scale else None,
        sum(bias_terms) if need_bias else None,
    )
