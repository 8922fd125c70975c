"""Forward kernels of ``similarity_lse`` where rows are columns: over half of the tiles."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_join import _store_pairs, join
from fastssl_kernels.similarity_lse_tiles import dot, load_rows, mask, products_by_chunks


@triton.jit(do_not_specialize=["first", "last"])
def _similarity_lse_fwd_triangle_kernel(
    x_ptr,  # [M, D]
    inverse_norm_ptr,  # [M]
    base2_ptr,  # [1] f64
    row_sums_ptr,  # [last − first, M] f32
    column_sums_ptr,  # [segments, M] f32
    M,
    first,
    last,
    run,
    self_offset,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # a multiple of BLOCK_M
    BLOCK_D: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of 2^t over half the symmetric matrix, each tile giving row and column sums.

    Column block i takes the row blocks i, i+1, … i+blocks/2, counted around the circle, BLOCK_M
    rows at a time: every unordered pair of blocks is met once and all have equal work. A tile's row
    sums need few exchanges between threads and are stored at once; its column sums would need many,
    and are kept element by element until the end. The row sums of the tiles at distance d have a
    place of their own in row d of the buffer, so nothing is added atomically and the result does
    not depend on the order of the programs. Logits are known to be small enough for 2^t to need no
    maximum.
    """
    PARTS: tl.constexpr = BLOCK_N // BLOCK_M  # of a row block
    blocks = tl.cdiv(M, BLOCK_N)
    block = tl.program_id(0)
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    column_first = block * BLOCK_N
    columns = column_first + local_n

    # With an even number of blocks the farthest distance meets each pair twice: drop one.
    distances = blocks // 2 + ((blocks % 2 == 1) | (block < blocks // 2)).to(tl.int32)
    begin = first + segment * run
    end = tl.minimum(tl.minimum(begin + run, last), distances)

    column_norm = tl.load(inverse_norm_ptr + columns, mask=columns < M, other=0.0)
    column_coefficient = (tl.load(base2_ptr) * column_norm).to(tl.float32)  # [BN]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        y = load_rows(x_ptr, column_first, local_n, features, M, D, BLOCK_D)  # [BN, BD]
    sums = tl.zeros([BLOCK_M // 16, 8, BLOCK_N], tl.float32)
    for step in range(begin * PARTS, end * PARTS):
        row_block = block * PARTS + step
        row_block = tl.where(row_block >= blocks * PARTS, row_block - blocks * PARTS, row_block)
        row_first = row_block * BLOCK_M
        rows = row_first + local_m
        row_norm = tl.load(inverse_norm_ptr + rows, mask=rows < M, other=0.0)  # [BM]
        if BLOCK_D >= D:
            x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local_m, M, x_ptr, column_first, local_n, M,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
        t = raw * (row_norm.to(tl.float32)[:, None] * column_coefficient[None, :])  # [BM, BN]
        t = mask(
            t, float("-inf"), rows[:, None], row_first, M, BLOCK_M, columns[None, :], column_first,
            M, BLOCK_N, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
        )  # fmt: skip
        e = tl.exp2(t)  # [BM, BN]
        # The tensor cores' layout gives a thread rows r and r + 8: those two are joined at once.
        sums += tl.sum(tl.reshape(e, [BLOCK_M // 16, 2, 8, BLOCK_N]), 1)
        distance = step // PARTS
        # The diagonal block is whole: its row sums are its column sums.
        place = tl.cast(distance - first, tl.int64) * M
        tl.store(row_sums_ptr + place + rows, tl.sum(e, 1), mask=(rows < M) & (step >= PARTS))
    place = tl.cast(segment, tl.int64) * M
    sums = tl.sum(tl.reshape(sums, [BLOCK_M // 2, BLOCK_N]), 0)
    tl.store(column_sums_ptr + place + columns, sums, mask=columns < M)


@triton.jit(do_not_specialize=["first", "last", "segments"])
def _similarity_lse_fwd_triangle_finish_kernel(
    x_ptr,  # [M, D]
    row_sums_ptr,  # [last − first, M] f32
    column_sums_ptr,  # [segments, M] f32
    inverse_norm_ptr,  # [M]
    base2_ptr,  # [1] f64
    lse_ptr,  # [M] f64
    pair_ptr,  # [M] f64
    M,
    first,
    last,
    segments,
    pair_offset,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLOTS: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Join the partial sums of distances [first, last); the last call takes the logarithm."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < M
    total = tl.zeros([ROWS], tl.float64)
    if not FIRST:
        total += tl.load(lse_ptr + rows, mask=inside, other=0.0)
    nothing = tl.zeros([ROWS], tl.float64)
    total, _ = join(total, nothing, column_sums_ptr, None, segments, rows, M, SLOTS)
    blocks = tl.cdiv(M, BLOCK)
    for distance in range(first, last, SLOTS):
        slot = distance + tl.arange(0, SLOTS)
        met = (slot < last) & (slot > 0)
        # At the farthest of an even number of blocks only the second half was met as rows.
        written = (2 * slot < blocks)[:, None] | (rows // BLOCK >= blocks // 2)[None, :]
        part = tl.load(
            row_sums_ptr + (slot - first).to(tl.int64)[:, None] * M + rows[None, :],
            mask=met[:, None] & written & inside[None, :],
            other=0.0,
        )  # [SLOTS, ROWS]
        total += tl.sum(part.to(tl.float64), 0)
    if LAST:
        tl.store(lse_ptr + rows, tl.log(total), mask=inside)
        _store_pairs(
            x_ptr, x_ptr, inverse_norm_ptr, inverse_norm_ptr, base2_ptr, pair_ptr,
            tl.program_id(0) * ROWS, pair_offset, M, M,
            D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
        )  # fmt: skip
    else:
        tl.store(lse_ptr + rows, total, mask=inside)
