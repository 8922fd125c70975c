"""What of ``similarity_lse``'s gradients needs no matrix: those of pairs that are no columns, and
of rows whose softmax-weighted means the forward kept. One pass over the rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl_kernels.similarity_lse_plan import _launch, _plan
from fastssl_kernels.similarity_lse_rows import NORM_EPS
from fastssl_kernels.similarity_lse_shapes import cdiv
from fastssl_kernels.similarity_lse_tiles import gather_rows, narrow


@triton.jit
def _unit_rows(
    ptr, rows, features, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr
):
    """Rows in float64, divided by their norms if so wanted, and 1/norm, [ROWS]."""
    x = gather_rows(ptr, rows, features, inside, D, BLOCK_D).to(tl.float64)
    norm = tl.sqrt(tl.sum(x * x, 1))
    inverse = tl.where(norm < NORM_EPS, 0.0, 1.0 / norm)
    return (x * inverse[:, None] if NORMALIZE else x), inverse


@triton.jit
def _store_back(
    d_ptr,
    direction,  # [ROWS, BD] f64
    unit,  # [ROWS, BD] f64
    inverse,  # [ROWS] f64
    gain,
    rows,
    features,
    inside,
    D: tl.constexpr,
    NORMALIZE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The gradient of rows from that of their unit vectors."""
    if NORMALIZE:
        direction -= unit * tl.sum(unit * direction, 1)[:, None]
        direction *= inverse[:, None]
    direction *= gain
    if d_ptr.dtype.element_ty != tl.float32:
        direction = direction.to(tl.float32)
    tl.store(
        d_ptr + rows.to(tl.int64)[:, None] * D + features[None, :],
        narrow(direction, d_ptr.dtype.element_ty, INTERPRETED),
        mask=inside[:, None] & (features < D)[None, :],
    )


@triton.jit
def _similarity_lse_pairs_bwd_kernel(
    d_lse_ptr,  # [M] f64
    d_pair_ptr,  # [M] f64
    x_ptr,  # [M, D]
    pairs_ptr,  # [M, D], or None
    mean_ptr,  # [M, D] f32, or None
    scale_ptr,  # [], or None for 1
    d_x_ptr,  # [M, D], or None
    d_pairs_ptr,  # [M, D], or None
    d_scale_ptr,  # [M] f64 shares of the rows, or None
    factor: tl.float64,
    M,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Gradients of ``d_lse_i · x_i·mean_i + d_pair_i · x_i·pairs_i``, scaled, in float64: what the
    pair takes and what the mean gives may be nearly the same."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < M
    features = tl.arange(0, BLOCK_D)
    gain = tl.full([], 1.0, tl.float64) * factor
    if scale_ptr is not None:
        gain *= tl.load(scale_ptr).to(tl.float64)
    x, x_inverse = _unit_rows(x_ptr, rows, features, inside, D, BLOCK_D, NORMALIZE)
    direction = tl.zeros([ROWS, BLOCK_D], tl.float64)
    if mean_ptr is not None:
        d_lse = tl.load(d_lse_ptr + rows, mask=inside, other=0.0)
        mean = gather_rows(mean_ptr, rows, features, inside, D, BLOCK_D)
        direction += d_lse[:, None] * mean.to(tl.float64)
    if pairs_ptr is not None:
        d_pair = tl.load(d_pair_ptr + rows, mask=inside, other=0.0)[:, None]
        pairs, inverse = _unit_rows(pairs_ptr, rows, features, inside, D, BLOCK_D, NORMALIZE)
        direction += d_pair * pairs
        if d_pairs_ptr is not None:
            _store_back(
                d_pairs_ptr, d_pair * x, pairs, inverse, gain, rows, features, inside,
                D, NORMALIZE, INTERPRETED,
            )  # fmt: skip
    if d_scale_ptr is not None:
        tl.store(d_scale_ptr + rows, tl.sum(x * direction, 1) * factor, mask=inside)
    if d_x_ptr is not None:
        _store_back(
            d_x_ptr, direction, x, x_inverse, gain, rows, features, inside,
            D, NORMALIZE, INTERPRETED,
        )  # fmt: skip


def launch_similarity_lse_pairs_bwd(
    d_lse: Tensor,  # [M] f64
    d_pair: Tensor,  # [M] f64
    x: Tensor,  # [M, D]
    pairs: Tensor | None,  # [M, D]
    scale: Tensor | None,  # []
    mean: Tensor | None,  # [M, D] f32
    factor: float,
    normalize: bool,
    need_x: bool,
    need_pairs: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_x, d_pairs, d_scale like x, pairs and scale; empty where not needed."""

    def room(needed: bool) -> Tensor:
        shape = x.shape if needed else (0,)
        return x.new_empty(shape)

    m = len(x)
    plan = _plan(x)
    d_x, d_pairs, d_scale = room(need_x), room(need_pairs), x.new_empty(0)
    shares = d_lse.new_empty(m if need_scale else 0)
    rows = max(1, min(plan.rows, 512 // plan.whole_d))  # few: the smaller problems wait for no one
    with torch.cuda.device_of(x):
        _launch(
            _similarity_lse_pairs_bwd_kernel,
            (cdiv(m, rows),),
            *(d_lse.contiguous(), d_pair.contiguous(), x.contiguous()),
            *(None if pairs is None else pairs.contiguous(), mean, scale),
            *(d_x if need_x else None, d_pairs if need_pairs else None),
            *(shares if need_scale else None, factor, m),
            D=plan.d,
            BLOCK_D=plan.whole_d,
            ROWS=rows,
            NORMALIZE=normalize,
            INTERPRETED=plan.device.interpreted,
            num_warps=4,
        )
        if need_scale:
            d_scale = shares.sum().to(scale.dtype)
    return d_x, d_pairs, d_scale
