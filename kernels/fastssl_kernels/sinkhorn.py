"""``sinkhorn`` on CUDA (and, under Triton's interpreter, CPU) tensors.

An iteration is a pass over rows and one over columns: a row as long as DINO's is no program's to
keep, and the second pass finds small matrices in the L2 cache. Differences of logits and potentials
are taken as sums of two float32, powers in float32, sums of many in float64. Nothing here waits for
the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl_kernels.similarity_lse_plan import _device, _launch
from fastssl_kernels.similarity_lse_shapes import cdiv, next_power_of_2

ROWS, ROW = 4, 512  # rows that a program takes, and scores of each at a time
TILE_B, TILE_K = 32, 128  # scores that a program takes at a time where it adds up columns
PARTS = 64  # runs of rows, at most, whose sums of columns are joined

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
NOTHING: tl.constexpr = tl.constexpr(-3e38)  # in place of a maximum of −inf
WEAK: tl.constexpr = tl.constexpr(2.0**-30)  # sums below this have lost digits


@triton.jit
def _halves(potentials):
    """float64 potentials in base 2, each as a sum of two float32."""
    potentials *= LOG2E
    high = potentials.to(tl.float32)
    return high, (potentials - high.to(tl.float64)).to(tl.float32)


@triton.jit
def _exponents(s, high, low, p, p_left, INTERPRETED: tl.constexpr):
    """s · (high + low) − p − p_left as a sum of two float32, all but the last rounding of which is
    exact: conversions to and from float64 take as long as the powers themselves."""
    s = s.to(tl.float32)
    product = s * high
    if INTERPRETED:  # whose fma rounds twice
        left = (s.to(tl.float64) * high - product.to(tl.float64)).to(tl.float32)
    else:
        left = tl.fma(s, high, -product)
    left = tl.fma(s, low, left)
    x = product - p
    moved = x - product
    left += (product - (x - moved)) - (p + moved)
    # What is left of −inf is NaN; of two numbers the maximum is the one that is not.
    return x, tl.maximum(left - p_left, NOTHING)


@triton.jit
def _row_exponents(
    scores_ptr,
    columns_ptr,
    inside,
    first,
    K,
    high,
    low,
    ROWS: tl.constexpr,
    ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """(scores / ε − v) · log2(e) of a stretch of some rows, −inf past their ends."""
    k = first + tl.arange(0, ROW)
    p, p_left = _halves(tl.load(columns_ptr + k, mask=k < K, other=0.0))  # [ROW]
    place = tl.arange(0, ROWS).to(tl.int64)[:, None] * K + k[None, :]
    allowed = inside[:, None] & (k < K)[None, :]
    s = tl.load(scores_ptr + place, mask=allowed, other=-float("inf"))  # [ROWS, ROW]
    return _exponents(s, high, low, p[None, :], p_left[None, :], INTERPRETED)


@triton.jit
def _sum(
    scores_ptr,
    columns_ptr,
    inside,
    K,
    high,
    low,
    anchor,
    ROWS: tl.constexpr,
    ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_k of the powers of two, relative to that of the anchor, by rows."""
    sums = tl.zeros([ROWS, ROW], tl.float32)
    for first in range(0, K, ROW):
        x, left = _row_exponents(
            scores_ptr, columns_ptr, inside, first, K, high, low, ROWS, ROW, INTERPRETED
        )
        sums += tl.exp2((x - anchor[:, None]) + left)
    return tl.sum(sums.to(tl.float64), 1)


@triton.jit
def _sinkhorn_rows_kernel(
    scores_ptr,  # [B, K]
    before_ptr,  # [B] f64 the rows' potentials before, or None: no power relative to it overflows
    columns_ptr,  # [K] f64
    rows_ptr,  # [B] f64, out
    plan_ptr,  # [B, K] f32, out, or None
    B,
    K,
    high,  # the factor of the scores, log2(e) / ε, in two numbers
    low,
    ROWS: tl.constexpr,
    ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Some rows' log-sum-exps of scores / ε − v, and their plan."""
    first_row = tl.program_id(0) * ROWS
    row = first_row + tl.arange(0, ROWS)
    inside = row < B
    scores_ptr += tl.cast(first_row, tl.int64) * K
    anchor = tl.zeros([ROWS], tl.float32)
    if before_ptr is not None:
        anchor += (tl.load(before_ptr + row, mask=inside, other=0.0) * LOG2E).to(tl.float32)
    total = _sum(
        scores_ptr, columns_ptr, inside, K, high, low, anchor, ROWS, ROW, INTERPRETED
    )  # [ROWS]
    reached = (total > WEAK) & (total < 1e30)  # not NaN
    if tl.min((reached | (row >= B)).to(tl.int32), 0) == 0:
        highest = tl.full([ROWS, ROW], -float("inf"), tl.float32)
        for first in range(0, K, ROW):
            x, _ = _row_exponents(
                scores_ptr, columns_ptr, inside, first, K, high, low, ROWS, ROW, INTERPRETED
            )
            highest = tl.maximum(highest, x)
        anchor = tl.max(highest, 1)
        total = _sum(scores_ptr, columns_ptr, inside, K, high, low, anchor, ROWS, ROW, INTERPRETED)
    lse = anchor.to(tl.float64) + tl.log2(total)
    tl.store(rows_ptr + row, lse * LN2, mask=inside)
    if plan_ptr is not None:
        plan_ptr += tl.cast(first_row, tl.int64) * K
        nearest = lse.to(tl.float32)
        rest = (lse - nearest.to(tl.float64)).to(tl.float32)
        for first in range(0, K, ROW):
            x, left = _row_exponents(
                scores_ptr, columns_ptr, inside, first, K, high, low, ROWS, ROW, INTERPRETED
            )
            plan = tl.exp2((x - nearest[:, None]) + (left - rest[:, None]))
            k = first + tl.arange(0, ROW)
            place = tl.arange(0, ROWS).to(tl.int64)[:, None] * K + k[None, :]
            tl.store(plan_ptr + place, plan, mask=inside[:, None] & (k < K)[None, :])


@triton.jit
def _sinkhorn_columns_kernel(
    scores_ptr,  # [B, K]
    rows_ptr,  # [B] f64, or None
    anchors_ptr,  # [parts, K] f32, out
    sums_ptr,  # [parts, K] f64, out
    B,
    K,
    run,  # rows of a part
    high,
    low,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_b of the powers of a run of rows, by columns, relative to about their largest."""
    part = tl.program_id(1)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    anchor = tl.full([BLOCK_K], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_K], tl.float64)
    end = tl.minimum((part + 1) * run, B)
    for first in range(part * run, end, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        inside = (b < end)[:, None] & (k < K)[None, :]
        place = b.to(tl.int64)[:, None] * K + k[None, :]
        s = tl.load(scores_ptr + place, mask=inside, other=-float("inf"))  # [BB, BK]
        p = tl.zeros([BLOCK_B], tl.float32)
        p_left = tl.zeros([BLOCK_B], tl.float32)
        if rows_ptr is not None:
            p, p_left = _halves(tl.load(rows_ptr + b, mask=b < end, other=0.0))
        x, left = _exponents(s, high, low, p[:, None], p_left[:, None], INTERPRETED)
        raised = tl.maximum(anchor, tl.max(x, 0))  # [BK]
        powers = tl.exp2((x - raised[None, :]) + left)
        total = total * tl.exp2(anchor - raised) + tl.sum(powers, 0)
        anchor = raised
    place = part.to(tl.int64) * K + k
    tl.store(anchors_ptr + place, anchor, mask=k < K)
    tl.store(sums_ptr + place, total, mask=k < K)


@triton.jit
def _sinkhorn_join_kernel(
    anchors_ptr,  # [parts, K] f32
    sums_ptr,  # [parts, K] f64
    columns_ptr,  # [K] f64, out
    K,
    parts,
    PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FINITE: tl.constexpr,
):
    """The columns' log-sum-exps, of all parts' sums; FINITE: 0 of a column of nothing but −inf, and
    NaN where there is no plan."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    part = tl.arange(0, PARTS)
    inside = (part < parts)[:, None] & (k < K)[None, :]
    place = part.to(tl.int64)[:, None] * K + k[None, :]
    anchors = tl.load(anchors_ptr + place, mask=inside, other=NOTHING)  # [PARTS, BK]
    sums = tl.load(sums_ptr + place, mask=inside, other=0.0)
    highest = tl.max(anchors, 0)  # [BK]
    total = tl.sum(sums * tl.exp2(anchors - highest[None, :]), 0)
    lse = (highest.to(tl.float64) + tl.log2(total)) * LN2
    if FINITE:
        lse = tl.where(lse == -float("inf"), 0.0, tl.where(lse == float("inf"), float("nan"), lse))
    tl.store(columns_ptr + k, lse, mask=k < K)


def launch_sinkhorn_fwd(
    scores: Tensor,  # [B, K]
    epsilon: float,
    rows: Tensor | None,  # [B]
    columns: Tensor | None,  # [K]
    following: bool,
    plan: bool,
    finite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Potentials of rows and of the columns that follow, float64, and the plan, float32; empty
    what is not wanted."""
    with torch.cuda.device_of(scores):
        scores = scores.contiguous()
        b, k = scores.shape
        u = scores.new_empty(0 if columns is None else b, dtype=torch.float64)
        v = scores.new_empty(k if following else 0, dtype=torch.float64)
        q = scores.new_empty((b, k) if plan else (0, 0), dtype=torch.float32)
        factor = math.log2(math.e) / epsilon
        high = torch.tensor(factor, dtype=torch.float32).item()
        if columns is not None:
            _launch(
                _sinkhorn_rows_kernel,
                (cdiv(b, ROWS),),
                *(scores, rows, columns, u, q if plan else None, b, k, high, factor - high),
                ROWS=ROWS,
                ROW=min(ROW, next_power_of_2(k)),
                INTERPRETED=_device(scores).interpreted,
                num_warps=4,
            )
        if following:
            _columns(scores, None if columns is None else u, v, high, factor - high, finite)
    return u, v, q


def _columns(
    scores: Tensor, rows: Tensor | None, out: Tensor, high: float, low: float, finite: bool
) -> None:
    b, k = scores.shape
    blocks = cdiv(k, TILE_K)
    # Enough programs for four on each multiprocessor.
    parts = min(PARTS, cdiv(b, TILE_B), cdiv(4 * _device(scores).processors, blocks))
    run = cdiv(cdiv(b, parts), TILE_B) * TILE_B
    parts = cdiv(b, run)
    anchors = scores.new_empty(parts, k, dtype=torch.float32)
    sums = out.new_empty(parts, k)
    _launch(
        _sinkhorn_columns_kernel,
        (blocks, parts),
        *(scores, rows, anchors, sums, b, k, run, high, low),
        BLOCK_B=TILE_B,
        BLOCK_K=TILE_K,
        INTERPRETED=_device(scores).interpreted,
        num_warps=4,
    )
    _launch(
        _sinkhorn_join_kernel,
        (cdiv(k, TILE_K),),
        *(anchors, sums, out, k, parts),
        PARTS=next_power_of_2(parts),
        BLOCK_K=TILE_K,
        FINITE=finite,
        num_warps=4,
    )
