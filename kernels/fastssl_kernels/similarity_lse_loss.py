"""``softplus(lse − pair)`` of the rows, added up: what losses make of ``similarity_lse``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl_kernels.similarity_lse_plan import _launch
from fastssl_kernels.similarity_lse_shapes import cdiv

ROWS = 1024  # at a time
ALONE = 4096  # rows that one program adds up; of more, several do, and a second launch joins them


@triton.jit
def _softplus(t):
    """``log(1 + e^t)`` of float64, with all its digits however small it is."""
    power = tl.exp(-tl.abs(t))  # NaN stays visible
    one_more = 1.0 + power
    # log(1 + p) = log(fl(1 + p)) · p / (fl(1 + p) − 1), whose roundings cancel.
    rounded = tl.where(one_more == 1.0, 1.0, one_more - 1.0)
    tail = tl.where(one_more == 1.0, power, tl.log(one_more) * (power / rounded))
    return tl.where(t > 0, t, 0.0) + tail


@triton.jit
def _sigmoid(t):
    power = tl.exp(-tl.abs(t))
    return tl.where(t > 0, 1.0, power) / (1.0 + power)


@triton.jit
def _similarity_lse_loss_fwd_kernel(
    pair_ptr,  # [N] f64
    lse_ptr,  # [N] f64
    other_ptr,  # [N] f64, or None
    sums_ptr,  # [programs]
    weight: tl.float64,
    N,
    run,
    ROWS: tl.constexpr,
):
    """Each program's ``run`` rows, always added in the same order."""
    begin = tl.program_id(0) * run
    total = tl.zeros([ROWS], tl.float64)
    for first in range(begin, tl.minimum(begin + run, N), ROWS):
        rows = first + tl.arange(0, ROWS)
        pair = tl.load(pair_ptr + rows, mask=rows < N, other=0.0)
        # A row outside is one without negatives: its loss is 0.
        lse = tl.load(lse_ptr + rows, mask=rows < N, other=float("-inf"))
        total += _softplus(lse - pair)
        if other_ptr is not None:
            other = tl.load(other_ptr + rows, mask=rows < N, other=float("-inf"))
            total += _softplus(other - pair)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(total, 0) * weight)


@triton.jit
def _similarity_lse_loss_fwd_finish_kernel(
    sums_ptr,  # [count] f64
    loss_ptr,  # [] f32
    count,
    ROWS: tl.constexpr,
):
    total = tl.zeros([ROWS], tl.float64)
    for first in range(0, count, ROWS):
        rows = first + tl.arange(0, ROWS)
        total += tl.load(sums_ptr + rows, mask=rows < count, other=0.0)
    tl.store(loss_ptr, tl.sum(total, 0))


@triton.jit
def _similarity_lse_loss_bwd_kernel(
    d_loss_ptr,  # []
    pair_ptr,  # [N] f64
    lse_ptr,  # [N] f64
    other_ptr,  # [N] f64, or None
    d_pair_ptr,  # [N] f64
    d_lse_ptr,  # [N] f64
    d_other_ptr,  # [N] f64, or None
    weight: tl.float64,
    N,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    upstream = tl.load(d_loss_ptr).to(tl.float64) * weight
    pair = tl.load(pair_ptr + rows, mask=inside, other=0.0)
    d_lse = upstream * _sigmoid(tl.load(lse_ptr + rows, mask=inside, other=0.0) - pair)
    tl.store(d_lse_ptr + rows, d_lse, mask=inside)
    d_pair = -d_lse
    if other_ptr is not None:
        d_other = upstream * _sigmoid(tl.load(other_ptr + rows, mask=inside, other=0.0) - pair)
        tl.store(d_other_ptr + rows, d_other, mask=inside)
        d_pair -= d_other
    tl.store(d_pair_ptr + rows, d_pair, mask=inside)


def _weight(pair: Tensor, other: Tensor | None) -> float:
    """Of one row in the mean."""
    return 1 / (len(pair) * (1 if other is None else 2))


def launch_similarity_lse_loss_fwd(
    pair: Tensor,  # [N] f64
    lse: Tensor,  # [N] f64
    other: Tensor | None,  # [N] f64
) -> Tensor:
    """The mean of ``softplus(lse_i − pair_i)``, over both where there are two; float32."""
    pair, lse, other = (None if t is None else t.contiguous() for t in (pair, lse, other))
    loss = pair.new_empty((), dtype=torch.float32)
    count = cdiv(len(pair), ALONE)
    sums = loss if count == 1 else pair.new_empty(count)
    with torch.cuda.device_of(pair):
        _launch(
            _similarity_lse_loss_fwd_kernel,
            (count,),
            *(pair, lse, other, sums, _weight(pair, other), len(pair), ALONE),
            ROWS=ROWS,
            num_warps=8,
        )
        if count > 1:
            _launch(
                _similarity_lse_loss_fwd_finish_kernel,
                (1,),
                *(sums, loss, count),
                ROWS=ROWS,
                num_warps=8,
            )
    return loss


def launch_similarity_lse_loss_bwd(
    d_loss: Tensor,  # []
    pair: Tensor,  # [N] f64
    lse: Tensor,  # [N] f64
    other: Tensor | None,  # [N] f64
) -> tuple[Tensor, Tensor, Tensor]:
    """d_pair, d_lse, d_other, float64; the last empty where there is none."""
    pair, lse, other = (None if t is None else t.contiguous() for t in (pair, lse, other))
    d_pair, d_lse = torch.empty_like(pair), torch.empty_like(lse)
    d_other = pair.new_empty(0) if other is None else torch.empty_like(other)
    with torch.cuda.device_of(pair):
        _launch(
            _similarity_lse_loss_bwd_kernel,
            (cdiv(len(pair), 128),),
            *(d_loss, pair, lse, other, d_pair, d_lse, None if other is None else d_other),
            *(_weight(pair, other), len(pair)),
            ROWS=128,
            num_warps=4,
        )
    return d_pair, d_lse, d_other
