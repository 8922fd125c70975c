"""Forward kernels of ``similarity_lse`` that also give each row's softmax-weighted mean column."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_join import _store_pairs, join
from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    LOWEST,
    dot,
    load_rows,
    mask,
    narrow,
    products_by_chunks,
)

# float16 holds a weight of at most 1 to all its digits down to 2^-14: so they are raised first.
RAISED: tl.constexpr = tl.constexpr(16384.0)


@triton.jit
def _similarity_lse_fwd_mean_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    sums_ptr,  # [segments, M]
    maxima_ptr,  # [segments, M], or None if BOUNDED
    partial_ptr,  # [segments, count, D] f32
    M,
    K,
    first_row,
    count,
    run,
    self_offset,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_j 2^(t_ij − max_i) and Σ_j 2^(t_ij − max_i) ŷ_j over one segment of the columns.

    As attention's forward with the columns for keys and values. The raw vectors go to the tensor
    cores as they are and their inverse norms ride on the weights; but float16's range has no
    room for these, so there the vectors are normalised.
    """
    ACC: tl.constexpr = tl.float64 if EXACT else tl.float32
    NARROW: tl.constexpr = y_ptr.dtype.element_ty == tl.float16
    segment = tl.program_id(1)
    out_first = tl.program_id(2) * BLOCK_OUT
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    row_first = first_row + tl.program_id(0) * BLOCK_M
    rows = row_first + local_m
    inside = rows - first_row < count
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))

    norm = tl.load(row_norm_ptr + rows, mask=inside, other=0.0)
    row_coefficient = (tl.load(base2_ptr) * norm).to(ACC)  # [BM]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    sums = tl.zeros([BLOCK_M], ACC)
    maxima = tl.full([BLOCK_M], LOWEST, ACC)
    mean = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for column_block in range(begin, end):
        column_first = column_block * BLOCK_N
        columns = column_first + local_n
        if BLOCK_D >= D:
            y = load_rows(y_ptr, column_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], ACC), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local_m, M, y_ptr, column_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED, ACC,
            )  # fmt: skip
            out_features = out_first + tl.arange(0, BLOCK_OUT)
            y = load_rows(y_ptr, column_first, local_n, out_features, K, D, BLOCK_OUT)  # [BN, BO]
        column_norm = tl.load(column_norm_ptr + columns, mask=columns < K, other=0.0)  # [BN]
        t = raw * (row_coefficient[:, None] * column_norm.to(ACC)[None, :])  # [BM, BN]
        t = mask(
            t, float("-inf"), rows[:, None], row_first, M, BLOCK_M, columns[None, :], column_first,
            K, BLOCK_N, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
        )  # fmt: skip
        if BOUNDED:
            e = tl.exp2(t)  # [BM, BN]
        else:
            largest = tl.maximum(maxima, tl.max(t, 1))  # [BM]
            e = tl.exp2((t - largest[:, None]).to(tl.float32))  # [BM, BN]
            shrunk = tl.exp2((maxima - largest).to(tl.float32))  # [BM]
            sums *= shrunk
            mean *= shrunk[:, None]
            maxima = largest
        sums += tl.sum(e, 1)
        column_norm = column_norm.to(tl.float32)
        if NARROW:
            y = narrow(y.to(tl.float32) * column_norm[:, None], y.dtype, INTERPRETED)
            e *= RAISED
        else:
            e *= column_norm[None, :]
        mean = dot(narrow(e, y.dtype, INTERPRETED), y, mean, PRECISION, INTERPRETED)

    if out_first == 0:
        place = tl.cast(segment, tl.int64) * M + rows
        tl.store(sums_ptr + place, sums, mask=inside)
        if not BOUNDED:
            tl.store(maxima_ptr + place, maxima, mask=inside)
    if NARROW:
        mean *= 1.0 / RAISED
    place = tl.cast(segment, tl.int64) * count + (rows - first_row)
    out_features = out_first + tl.arange(0, BLOCK_OUT)
    tl.store(
        partial_ptr + place[:, None] * D + out_features[None, :],
        mean,
        mask=inside[:, None] & (out_features < D)[None, :],
    )


@triton.jit(do_not_specialize=["segments"])
def _similarity_lse_fwd_mean_finish_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    sums_ptr,  # [segments, M]
    maxima_ptr,  # [segments, M], or None
    partial_ptr,  # [segments, count, D] f32
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    lse_ptr,  # [M] f64
    pair_ptr,  # [M] f64
    mean_ptr,  # [M, D] f32
    M,
    K,
    first_row,
    count,
    segments,
    pair_offset,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_MEAN: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One row's sums and means joined; one program in ROWS also takes that many rows' pairs."""
    index = tl.program_id(0)
    row = first_row + index
    if index % ROWS == 0:
        # Rows beyond this group's are right as well, and written again by their own.
        _store_pairs(
            x_ptr, y_ptr, row_norm_ptr, column_norm_ptr, base2_ptr, pair_ptr, row, pair_offset,
            M, K, D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
        )  # fmt: skip
    own = row + tl.arange(0, 1)
    total = tl.zeros([1], tl.float64)
    largest = tl.full([1], LOWEST if maxima_ptr is not None else 0.0, tl.float64)
    total, largest = join(total, largest, sums_ptr, maxima_ptr, segments, own, M, SLOTS)
    tl.store(lse_ptr + own, tl.log(total) + largest * LN2)

    features = tl.arange(0, BLOCK_MEAN)
    mean = tl.zeros([BLOCK_MEAN], tl.float32)
    for segment in range(0, segments, SLOTS):
        slot = segment + tl.arange(0, SLOTS)
        there = slot < segments
        part = tl.load(
            partial_ptr + (slot.to(tl.int64) * count + index)[:, None] * D + features[None, :],
            mask=there[:, None] & (features < D)[None, :],
            other=0.0,
        )  # [SLOTS, BD]
        if maxima_ptr is not None:
            maxima = tl.load(maxima_ptr + slot.to(tl.int64) * M + row, mask=there, other=LOWEST)
            part *= tl.exp2(maxima.to(tl.float64) - largest).to(tl.float32)[:, None]
        mean += tl.sum(part, 0)
    # A row with nothing to sum has sums of zero, and a mean of zero.
    total = tl.where(total == 0.0, 1.0, total).to(tl.float32)
    tl.store(mean_ptr + tl.cast(row, tl.int64) * D + features, mean / total, mask=features < D)
