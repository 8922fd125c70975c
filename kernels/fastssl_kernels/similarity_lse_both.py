"""Forward kernels of ``similarity_lse`` for sums by rows and by columns of unit vectors' logits."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_join import _store_pairs, join
from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    LOWEST,
    dot,
    load_rows,
    mask,
    products_by_chunks,
)

# Sums of 2^(t − shift) below this may have lost terms that were too small for float32.
WEAK: tl.constexpr = tl.constexpr(2.0**-80)
HEADROOM: tl.constexpr = tl.constexpr(64.0)  # log2 of the largest power


@triton.jit
def _shift(base2_ptr):
    """What logits lose before their power is taken, all alike; nothing at most temperatures.

    A whole number, and unit vectors' logits are at most |base2|: sums stay inside float32.
    """
    return tl.maximum(tl.ceil(tl.abs(tl.load(base2_ptr))) - HEADROOM, 0.0)


@triton.jit(do_not_specialize=["first_block"])
def _similarity_lse_fwd_both_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    row_sums_ptr,  # [column blocks of this launch, M] f32
    column_sums_ptr,  # [segments, K] f32
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
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of 2^(t − shift) of one block of columns over one segment of the rows, by both.

    As in the triangle, a tile's row sums need few exchanges between threads and are stored at once;
    its column sums would need many, and are kept element by element until the end.
    """
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    column_first = (first_block + tl.program_id(0)) * BLOCK_N
    columns = column_first + local_n
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(M, BLOCK_M))

    base2 = tl.load(base2_ptr)
    column_norm = tl.load(column_norm_ptr + columns, mask=columns < K, other=0.0)  # [BN]
    if not BOUNDED:
        shift = _shift(base2_ptr).to(tl.float32)
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        y = load_rows(y_ptr, column_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
    sums = tl.zeros([BLOCK_M // 16, 8, BLOCK_N], tl.float32)
    for row_block in range(begin, end):
        row_first = row_block * BLOCK_M
        rows = row_first + local_m
        row_norm = tl.load(row_norm_ptr + rows, mask=rows < M, other=0.0)
        row_coefficient = (base2 * row_norm).to(tl.float32)  # [BM]
        if BLOCK_D >= D:
            x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local_m, M, y_ptr, column_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
        t = raw * (row_coefficient[:, None] * column_norm[None, :])  # [BM, BN]
        if not BOUNDED:
            t -= shift
        t = mask(
            t, float("-inf"), rows[:, None], row_first, M, BLOCK_M, columns[None, :], column_first,
            K, BLOCK_N, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
        )  # fmt: skip
        e = tl.exp2(t)  # [BM, BN]
        # The tensor cores' layout gives a thread rows r and r + 8: those two are joined at once.
        sums += tl.sum(tl.reshape(e, [BLOCK_M // 16, 2, 8, BLOCK_N]), 1)
        place = tl.cast(tl.program_id(0), tl.int64) * M
        tl.store(row_sums_ptr + place + rows, tl.sum(e, 1), mask=rows < M)
    place = tl.cast(segment, tl.int64) * K
    sums = tl.sum(tl.reshape(sums, [BLOCK_M // 2, BLOCK_N]), 0)
    tl.store(column_sums_ptr + place + columns, sums, mask=columns < K)


@triton.jit
def _careful_sums(
    own_ptr,
    other_ptr,
    own_coefficient,  # [ROWS] f32
    other_norm_ptr,
    first,
    M,
    K,
    self_offset,
    pair_offset,
    BY_OWN: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One block's sums over all others relative to its maxima, and these."""
    local = tl.arange(0, ROWS)
    own = first + local
    sums = tl.zeros([ROWS], tl.float32)
    maxima = tl.full([ROWS], LOWEST, tl.float32)
    for other_first in range(0, K, ROWS):
        other = other_first + local
        raw = products_by_chunks(
            own_ptr, first, local, M, other_ptr, other_first, local, K,
            D, ROWS, ROWS, BLOCK_D, PRECISION, INTERPRETED,
        )  # fmt: skip
        other_norm = tl.load(other_norm_ptr + other, mask=other < K, other=0.0)
        t = raw * (own_coefficient[:, None] * other_norm[None, :])  # [ROWS, ROWS]
        if BY_OWN:
            t = mask(
                t, float("-inf"), own[:, None], first, M, ROWS, other[None, :], other_first, K,
                ROWS, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
        else:
            t = mask(
                t, float("-inf"), other[None, :], other_first, K, ROWS, own[:, None], first, M,
                ROWS, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
        largest = tl.maximum(maxima, tl.max(t, 1))  # [ROWS]
        sums = sums * tl.exp2(maxima - largest) + tl.sum(tl.exp2(t - largest[:, None]), 1)
        maxima = largest
    return sums, maxima


@triton.jit(do_not_specialize=["segments"])
def _similarity_lse_fwd_both_finish_kernel(
    own_ptr,  # [M, D]
    other_ptr,  # [K, D]
    own_norm_ptr,  # [M]
    other_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
    sums_ptr,  # [segments, M] f32
    lse_ptr,  # [M] f64; sums until the LAST
    pair_ptr,  # [M] f64, or None
    M,
    K,
    segments,
    self_offset,
    pair_offset,
    BY_OWN: tl.constexpr,  # own vectors are the matrix's rows
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    BOUNDED: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Join one side's partial sums; the last call takes the logarithm, and anew what was lost."""
    first = tl.program_id(0) * ROWS
    own = first + tl.arange(0, ROWS)
    inside = own < M
    total = tl.zeros([ROWS], tl.float64)
    if not FIRST:
        total += tl.load(lse_ptr + own, mask=inside, other=0.0)
    nothing = tl.zeros([ROWS], tl.float64)
    total, _ = join(total, nothing, sums_ptr, None, segments, own, M, SLOTS)
    if LAST:
        lse = tl.log(total)
        if not BOUNDED:
            lse += _shift(base2_ptr) * LN2
            if tl.min(tl.where(inside, total, 1.0), 0) < WEAK:
                own_norm = tl.load(own_norm_ptr + own, mask=inside, other=0.0)
                own_coefficient = (tl.load(base2_ptr) * own_norm).to(tl.float32)
                sums, maxima = _careful_sums(
                    own_ptr, other_ptr, own_coefficient, other_norm_ptr, first, M, K,
                    self_offset, pair_offset, BY_OWN, D, ROWS, BLOCK_D,
                    HAS_SELF, EXCLUDE_PAIR, PRECISION, INTERPRETED,
                )  # fmt: skip
                lse = tl.log(sums.to(tl.float64)) + maxima.to(tl.float64) * LN2
        total = lse
        if pair_ptr is not None:
            _store_pairs(
                own_ptr, other_ptr, own_norm_ptr, other_norm_ptr, base2_ptr, pair_ptr, first,
                pair_offset, M, K, D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
            )  # fmt: skip
    tl.store(lse_ptr + own, total, mask=inside)
