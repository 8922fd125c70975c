"""Kernels of ``similarity_softplus``: sums of softplus by tiles, and their gradients."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_join import _store_pairs, join
from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    dot,
    load_rows,
    mask,
    narrow,
    products_by_chunks,
)


@triton.jit
def _bias(bias_ptr, shift):
    """The bias, which came as a 0-dim tensor or as a number."""
    bias = tl.full([], 0.0, tl.float64) + shift
    if bias_ptr is not None:
        bias += tl.load(bias_ptr).to(tl.float64)
    return bias.to(tl.float32)


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1], to a rounding or two of the result however small u is."""
    p = tl.full(u.shape, -0.0032440247014164925, tl.float32)
    p = tl.fma(p, u, 0.019851459190249443)
    p = tl.fma(p, u, -0.05695952847599983)
    p = tl.fma(p, u, 0.10603654384613037)
    p = tl.fma(p, u, -0.15305592119693756)
    p = tl.fma(p, u, 0.1967593878507614)
    p = tl.fma(p, u, -0.24954134225845337)
    p = tl.fma(p, u, 0.3332996368408203)
    p = tl.fma(p, u, -0.4999990165233612)
    p = tl.fma(p, u, 1.0)
    return p * u


@triton.jit
def softplus(t):
    return tl.maximum(t, 0.0) + log1p_unit(tl.exp(-tl.abs(t)))


@triton.jit
def sigmoid(t):
    """Its small values keep their digits too."""
    u = tl.exp(-tl.abs(t))
    r = 1.0 / (1.0 + u)
    return tl.where(t < 0, u * r, r)


@triton.jit
def _similarity_softplus_fwd_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    bias_ptr,  # [], or None for 0
    sums_ptr,  # [segments, M] f32
    shift: tl.float64,  # added to the bias
    M,
    K,
    run,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of softplus for a block of rows over one segment of the columns."""
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    row_first = tl.program_id(0) * BLOCK_M
    rows = row_first + local_m
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))

    norm = tl.load(row_norm_ptr + rows, mask=rows < M, other=0.0)
    row_coefficient = (tl.load(base2_ptr) * LN2 * norm).to(tl.float32)  # [BM]
    bias = _bias(bias_ptr, shift)
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    sums = tl.zeros([BLOCK_M], tl.float32)
    for column_block in range(begin, end):
        column_first = column_block * BLOCK_N
        columns = column_first + local_n
        column_norm = tl.load(column_norm_ptr + columns, mask=columns < K, other=0.0)  # [BN]
        if BLOCK_D >= D:
            y = load_rows(y_ptr, column_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local_m, M, y_ptr, column_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
        coefficient = row_coefficient[:, None] * column_norm.to(tl.float32)[None, :]
        terms = mask(
            softplus(raw * coefficient + bias), 0.0,
            rows[:, None], row_first, M, BLOCK_M, columns[None, :], column_first,
            K, BLOCK_N, 0, pair_offset, False, EXCLUDE_PAIR,
        )  # fmt: skip
        sums += tl.sum(terms, 1)
    tl.store(sums_ptr + tl.cast(segment, tl.int64) * M + rows, sums, mask=rows < M)


@triton.jit(do_not_specialize=["segments"])
def _similarity_softplus_fwd_finish_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    sums_ptr,  # [segments, M] f32
    total_ptr,  # [M] f64
    pair_ptr,  # [M] f64, without the bias
    M,
    K,
    segments,
    pair_offset,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Join the segments' sums."""
    _store_pairs(
        x_ptr, y_ptr, row_norm_ptr, column_norm_ptr, base2_ptr, pair_ptr,
        tl.program_id(0) * ROWS, pair_offset, M, K,
        D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
    )  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    zero = tl.zeros([ROWS], tl.float64)
    total, _ = join(zero, zero, sums_ptr, None, segments, rows, M, SLOTS)
    tl.store(total_ptr + rows, total, mask=rows < M)


@triton.jit
def _similarity_softplus_bwd_kernel(
    own_ptr,  # [M, D] the vectors whose gradient this is
    other_ptr,  # [K, D]
    own_norm_ptr,  # [M]
    other_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    bias_ptr,  # [], or None for 0
    weight_ptr,  # [M] if BY_OWN, else [K]: d_total of the rows, f64
    gain_ptr,  # [] f32, or None for 1
    d_own_ptr,  # [splits, count, D] f32
    d_scale_ptr,  # [splits + 1, count] f32, or None
    d_bias_ptr,  # [splits, count] f32, or None
    shift: tl.float64,  # added to the bias
    M,
    K,
    first_own,
    count,
    run,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BY_OWN: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_j G_ij ŷ_j for a block of own vectors, ``G_ij = g · sigmoid(t_ij)`` recomputed by tiles.

    Own vectors are the rows of the sums (BY_OWN) or their columns; g is always the row's. The
    raw vectors go to the tensor cores as they are; the inverse norms of the others ride on G.
    """
    split = tl.program_id(1)
    out_first = tl.program_id(2) * BLOCK_OUT
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    own_first = first_own + tl.program_id(0) * BLOCK_M
    own = own_first + local_m
    inside = own - first_own < count
    begin = split * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))

    own_norm = tl.load(own_norm_ptr + own, mask=inside, other=0.0)  # [BM]
    own_coefficient = (tl.load(base2_ptr) * LN2 * own_norm).to(tl.float32)
    bias = _bias(bias_ptr, shift)
    gain = 1.0
    if gain_ptr is not None:
        gain = tl.load(gain_ptr)
    if BY_OWN:
        own_weight = tl.load(weight_ptr + own, mask=inside, other=0.0).to(tl.float32) * gain
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(own_ptr, own_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    d_own = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    d_scale = tl.zeros([BLOCK_M], tl.float32)
    d_bias = tl.zeros([BLOCK_M], tl.float32)

    for other_block in range(begin, end):
        other_first = other_block * BLOCK_N
        other = other_first + local_n
        if BLOCK_D >= D:
            y = load_rows(other_ptr, other_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                own_ptr, own_first, local_m, M, other_ptr, other_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
            out_features = out_first + tl.arange(0, BLOCK_OUT)
            y = load_rows(other_ptr, other_first, local_n, out_features, K, D, BLOCK_OUT)
        other_norm = tl.load(other_norm_ptr + other, mask=other < K, other=0.0)  # [BN]
        other_norm = other_norm.to(tl.float32)
        g = sigmoid(raw * (own_coefficient[:, None] * other_norm[None, :]) + bias)  # [BM, BN]
        if BY_OWN:
            g *= own_weight[:, None]
        else:
            weight = tl.load(weight_ptr + other, mask=other < K, other=0.0).to(tl.float32) * gain
            g *= weight[None, :]
        if BY_OWN:
            g = mask(
                g, 0.0, own[:, None], own_first, M, BLOCK_M, other[None, :], other_first,
                K, BLOCK_N, 0, pair_offset, False, EXCLUDE_PAIR,
            )  # fmt: skip
        else:
            g = mask(
                g, 0.0, other[None, :], other_first, K, BLOCK_N, own[:, None], own_first,
                M, BLOCK_M, 0, pair_offset, False, EXCLUDE_PAIR,
            )  # fmt: skip
        if d_bias_ptr is not None:
            d_bias += tl.sum(g, 1)
        g *= other_norm[None, :]
        if d_scale_ptr is not None:
            d_scale += tl.sum(g * raw, 1)
        d_own = dot(narrow(g, y.dtype, INTERPRETED), y, d_own, PRECISION, INTERPRETED)

    place = tl.cast(split, tl.int64) * count + (own - first_own)
    if out_first == 0:
        if d_scale_ptr is not None:
            tl.store(d_scale_ptr + place, d_scale * own_norm / gain, mask=inside)
        if d_bias_ptr is not None:
            tl.store(d_bias_ptr + place, d_bias / gain, mask=inside)
    out_features = out_first + tl.arange(0, BLOCK_OUT)
    tl.store(
        d_own_ptr + place[:, None] * D + out_features[None, :],
        d_own / gain,
        mask=inside[:, None] & (out_features < D)[None, :],
    )
