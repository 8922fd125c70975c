"""Launchers of ``similarity_softplus`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Forward: inverse norms; partial sums by tiles; one pass that joins them and takes the pairs.
Backward: inverse norms; one product per side; a pass that joins splits, if any.
Nothing here waits for the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastssl_kernels.similarity_lse import (
    FINISH_ROWS,
    SPLITS_BYTES,
    WIDEST,
    _launch,
    _pieces,
    _Plan,
    _plan,
    _rows,
)
from fastssl_kernels.similarity_lse_bwd import _similarity_lse_bwd_finish_kernel
from fastssl_kernels.similarity_softplus_kernels import (
    _similarity_softplus_bwd_kernel,
    _similarity_softplus_fwd_finish_kernel,
    _similarity_softplus_fwd_kernel,
)


class _Problem(NamedTuple):
    """Rows and columns ready for the kernels, and what all of them need to know."""

    plan: _Plan
    x: Tensor  # [M, D]
    y: Tensor  # [K, D]
    x_norm: Tensor  # [M] inverse norms
    y_norm: Tensor  # [K]
    base2: Tensor  # [1] scale · log2(e)
    scalars: tuple[Tensor | None, Tensor | None]  # scale and bias
    numbers: tuple[float, float]  # what stands for them where they are None
    normalize: bool
    pair_offset: int | None
    exclude_pair: bool


def _problem(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair) -> _Problem:
    plan, x, y = _plan(x), x.contiguous(), y.contiguous()
    base2 = x.new_empty(1, dtype=torch.float32)
    x_norm = _rows(plan, x, normalize, True, base2=base2, scale=scale, factor=factor)[0]
    y_norm = _rows(plan, y, normalize, True)[0]
    return _Problem(
        plan, x, y, x_norm, y_norm, base2,
        (scale, bias), (factor, shift), normalize, pair_offset, exclude_pair,
    )  # fmt: skip


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
        p = _problem(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair)
        m, k = len(p.x), len(p.y)
        tiles = p.plan.tiles("fwd")
        blocks, steps = triton.cdiv(m, tiles.block_m), triton.cdiv(k, tiles.block_n)
        pieces = _pieces(blocks, steps, p.plan.device.processors * tiles.per_processor, 512, 0.0)
        run = triton.cdiv(steps, pieces)
        pieces = triton.cdiv(steps, run)
        sums = p.x_norm.new_empty(pieces, m)
        total = p.x_norm.new_empty(m, dtype=torch.float64)
        pair = torch.empty_like(total)
        common = {
            "D": p.plan.d,
            "BLOCK_D": p.plan.block_d(tiles),
            "PRECISION": p.plan.precision,
            "INTERPRETED": p.plan.device.interpreted,
        }
        _launch(
            _similarity_softplus_fwd_kernel,
            (blocks, pieces),
            *(p.x, p.y, p.x_norm, p.y_norm, *p.scalars, sums, *p.numbers),
            *(m, k, run, pair_offset or 0),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            EXCLUDE_PAIR=exclude_pair,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **common,
        )
        _launch(
            _similarity_softplus_fwd_finish_kernel,
            (triton.cdiv(m, FINISH_ROWS),),
            *(p.x, p.y, sums, p.x_norm, p.y_norm, p.base2, total, pair),
            *(m, k, pieces, pair_offset or 0),
            ROWS=FINISH_ROWS,
            HAS_PAIR=pair_offset is not None,
            **common,
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
    nothing = x.new_empty(0)
    d_x = d_y = d_scale = d_bias = nothing
    with torch.cuda.device_of(x):
        p = _problem(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair)
        upstream = (d_total.contiguous(), d_pair.contiguous())
        gain = _gain(d_total, p) if x.dtype == torch.float16 else None
        if need_x or need_scale or need_bias:
            d_rows, d_scale_sum, d_bias_sum = _bwd(p, *upstream, gain, True, need_scale, need_bias)
            d_x = d_rows if need_x else nothing
            if need_scale:
                d_scale = (d_scale_sum * factor).to(scale.dtype)
            if need_bias:
                d_bias = d_bias_sum + d_pair.sum() if pair_offset is not None else d_bias_sum
                d_bias = d_bias.to(bias.dtype)
        if need_y:
            d_y = _bwd(p, *upstream, gain, False, False, False)[0]
    return d_x, d_y, d_scale, d_bias


def _gain(d_total: Tensor, p: _Problem) -> Tensor:
    """A power of two that brings the entries of G into float16's narrow range: an entry is at
    most the largest |d_total| times the largest inverse norm. The limit is 2^15."""
    largest = d_total.abs().amax() * torch.maximum(p.x_norm.amax(), p.y_norm.amax())
    return torch.exp2((15.0 - torch.log2(largest).ceil()).clamp(-60.0, 60.0)).float()


def _bwd(p: _Problem, d_total, d_pair, gain, by_rows: bool, need_scale: bool, need_bias: bool):
    """The gradient of the rows or of the columns, and of scale and bias if needed."""
    own, other, own_norm, other_norm = p.x, p.y, p.x_norm, p.y_norm
    if not by_rows:
        own, other, own_norm, other_norm = other, own, other_norm, own_norm
    plan, m, k = p.plan, len(own), len(other)
    common = {"D": plan.d, "BY_OWN": by_rows, "INTERPRETED": plan.device.interpreted}
    tiles = plan.tiles("bwd safe")  # a logistic takes more registers than a power
    block_out = plan.whole_d if plan.whole_d <= WIDEST // (plan.width // 2) else 128
    chunks = triton.cdiv(plan.d, block_out)
    blocks, steps = triton.cdiv(m, tiles.block_m), triton.cdiv(k, tiles.block_n)
    places = plan.device.processors * tiles.per_processor
    # Very many rows: a group of them at a time through one buffer.
    group = max(tiles.block_m, SPLITS_BYTES // (4 * plan.d) // tiles.block_m * tiles.block_m)
    # Writing and reading one split's partial gradient, in steps of one tile product.
    cost = 2.0 * m / (tiles.block_m * tiles.block_n)
    splits = _pieces(blocks * chunks, steps, places, max(1, min(64, group // m)), cost)
    run = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, run)
    group = min(group, m)
    partial = own_norm.new_empty(splits, group, plan.d)
    d_own = torch.empty_like(own)
    scale_terms, bias_terms = [], []
    for first in range(0, m, group):
        count = min(group, m - first)
        d_scale = own_norm.new_empty(splits + 1, count) if need_scale else None
        d_bias = own_norm.new_empty(splits, count) if need_bias else None
        place = (m, k, first, count)
        _launch(
            _similarity_softplus_bwd_kernel,
            (triton.cdiv(count, tiles.block_m), splits, chunks),
            *(own, other, own_norm, other_norm, *p.scalars, d_total, gain),
            *(partial, d_scale, d_bias, *p.numbers, *place, run, p.pair_offset or 0),
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_D=plan.block_d(tiles),
            BLOCK_OUT=block_out,
            EXCLUDE_PAIR=p.exclude_pair,
            PRECISION=plan.precision,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            **common,
        )
        _launch(
            _similarity_lse_bwd_finish_kernel,
            (triton.cdiv(count, plan.rows),),
            *(partial, own, other, own_norm, other_norm, d_pair, p.base2, d_own, d_scale),
            *(*place, splits, p.pair_offset or 0),
            BLOCK_D=plan.whole_d,
            ROWS=plan.rows,
            BY_OTHER=not by_rows,
            NORMALIZE=p.normalize,
            HAS_PAIR=p.pair_offset is not None,
            num_warps=4,
            **common,
        )
        if need_scale:
            scale_terms.append(d_scale.sum(dtype=torch.float64))
        if need_bias:
            bias_terms.append(d_bias.sum(dtype=torch.float64))
    return d_own, sum(scale_terms), sum(bias_terms)
