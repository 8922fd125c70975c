"""Forward kernels of ``similarity_lse`` for any rows and columns, and for the sums of both."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_join import _store_pairs, join
from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    LOG2E,
    LOWEST,
    dot,
    load_rows,
    mask,
    products_by_chunks,
)


@triton.jit(do_not_specialize=["first_block"])
def _similarity_lse_fwd_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    sums_ptr,  # [segments, M]
    maxima_ptr,  # [segments, M], or None if BOUNDED
    column_sums_ptr,  # [row blocks of this launch, K], or None
    column_maxima_ptr,  # [row blocks of this launch, K], or None if BOUNDED
    M,
    K,
    first_block,
    run,
    self_offset,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of 2^(t − max) of one block of rows over one segment of the columns, by rows and, if
    asked for, by columns. The rows' maximum runs along; a tile's column has its own. Both are 0
    if BOUNDED.

    EXACT: t is known to float64, and only its distance to a maximum is rounded to float32.
    """
    ACC: tl.constexpr = tl.float64 if EXACT else tl.float32
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    row_first = (first_block + tl.program_id(0)) * BLOCK_M
    rows = row_first + local_m
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))

    norm = tl.load(row_norm_ptr + rows, mask=rows < M, other=0.0)
    row_coefficient = (tl.load(base2_ptr) * norm).to(ACC)  # [BM]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    sums = tl.zeros([BLOCK_M], ACC)
    maxima = tl.full([BLOCK_M], LOWEST, ACC)
    for column_block in range(begin, end):
        column_first = column_block * BLOCK_N
        columns = column_first + local_n
        column_norm = tl.load(column_norm_ptr + columns, mask=columns < K, other=0.0)  # [BN]
        if BLOCK_D >= D:
            y = load_rows(y_ptr, column_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], ACC), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local_m, M, y_ptr, column_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED, ACC,
            )  # fmt: skip
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
            sums *= tl.exp2((maxima - largest).to(tl.float32))
            maxima = largest
        sums += tl.sum(e, 1)
        if column_sums_ptr is not None:
            place = tl.cast(tl.program_id(0), tl.int64) * K + columns
            if not BOUNDED:
                highest = tl.maximum(tl.max(t, 0), LOWEST)  # [BN]
                e = tl.exp2((t - highest[None, :]).to(tl.float32))  # [BM, BN]
                tl.store(column_maxima_ptr + place, highest, mask=columns < K)
            tl.store(column_sums_ptr + place, tl.sum(e, 0), mask=columns < K)
    place = tl.cast(segment, tl.int64) * M + rows
    tl.store(sums_ptr + place, sums, mask=rows < M)
    if not BOUNDED:
        tl.store(maxima_ptr + place, maxima, mask=rows < M)


@triton.jit(do_not_specialize=["segments"])
def _similarity_lse_fwd_finish_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    sums_ptr,  # [segments, M]
    maxima_ptr,  # [segments, M], or None
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    lse_ptr,  # [M] f64
    pair_ptr,  # [M] f64
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
    """The rows' sums joined, and the pairs."""
    first = tl.program_id(0) * ROWS
    _store_pairs(
        x_ptr, y_ptr, row_norm_ptr, column_norm_ptr, base2_ptr, pair_ptr, first, pair_offset, M, K,
        D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
    )  # fmt: skip
    rows = first + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float64)
    largest = tl.full([ROWS], LOWEST if maxima_ptr is not None else 0.0, tl.float64)
    total, largest = join(total, largest, sums_ptr, maxima_ptr, segments, rows, M, SLOTS)
    tl.store(lse_ptr + rows, tl.log(total) + largest * LN2, mask=rows < M)


@triton.jit(do_not_specialize=["segments"])
def _similarity_lse_fwd_finish_columns_kernel(
    sums_ptr,  # [segments, K]
    maxima_ptr,  # [segments, K], or None
    lse_ptr,  # [K] f64
    K,
    segments,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """The columns' sums over one group of row blocks, joined with those of the groups before."""
    columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float64)
    largest = tl.full([ROWS], LOWEST if maxima_ptr is not None else 0.0, tl.float64)
    if not FIRST:
        before = tl.load(lse_ptr + columns, mask=columns < K, other=0.0) * LOG2E
        if maxima_ptr is not None:
            largest = tl.maximum(before, LOWEST)
        total = tl.exp2(before - largest)
    total, largest = join(total, largest, sums_ptr, maxima_ptr, segments, columns, K, SLOTS)
    tl.store(lse_ptr + columns, tl.log(total) + largest * LN2, mask=columns < K)
