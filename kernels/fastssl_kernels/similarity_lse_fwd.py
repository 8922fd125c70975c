"""Forward kernels of ``similarity_lse``: partial sums by tiles, then one pass that joins them."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    allowed_entries,
    crosses,
    dot,
    gather_rows,
    load_rows,
    products_by_chunks,
)

# A floor for running maxima that is finite, so that −inf − floor is −inf and not NaN.
LOWEST: tl.constexpr = tl.constexpr(-1.0e30)


@triton.jit
def _store_pairs(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M] f32
    column_norm_ptr,  # [K] f32
    base2_ptr,  # [1] f32
    pair_ptr,  # [M] f64
    first,
    pair_offset,
    M,
    K,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The logits of a block of rows with their pairs, from the diagonal of one more tile.

    They take the same instructions and roundings as the negatives: at low temperature the loss is
    a small difference of large logits.
    """
    local = tl.arange(0, ROWS)
    rows = first + local
    inside = rows < M
    if HAS_PAIR:
        partner = (rows + pair_offset) % K
        raw = tl.zeros([ROWS, ROWS], tl.float32)
        for d in range(0, D, BLOCK_D):
            features = d + tl.arange(0, BLOCK_D)
            x = load_rows(x_ptr, first, local, features, M, D, BLOCK_D)  # [ROWS, BD]
            y = gather_rows(y_ptr, partner, features, inside, D, BLOCK_D)  # [ROWS, BD]
            raw = dot(x, y.T, raw, PRECISION, INTERPRETED)
        raw = tl.sum(tl.where(local[:, None] == local[None, :], raw, 0.0), 1)  # [ROWS]
        row_norm = tl.load(row_norm_ptr + rows, mask=inside, other=0.0)
        column_norm = tl.load(column_norm_ptr + partner, mask=inside, other=0.0)
        t = raw * (tl.load(base2_ptr) * row_norm * column_norm)
        logit = t.to(tl.float64) * LN2
    else:
        logit = tl.zeros([ROWS], tl.float64)
    tl.store(pair_ptr + rows, logit, mask=inside)


@triton.jit(do_not_specialize=["first", "last"])
def _similarity_lse_fwd_triangle_kernel(
    x_ptr,  # [M, D]
    inverse_norm_ptr,  # [M] f32
    base2_ptr,  # [1] f32
    row_sums_ptr,  # [last − first, M] f32
    column_sums_ptr,  # [segments, M] f32
    M,
    first,
    last,
    run,
    self_offset,
    pair_offset,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Sums of 2^t over half the symmetric matrix, each tile giving row and column sums.

    Column block i takes the row blocks i, i+1, … i+blocks/2, counted around the circle: every
    unordered pair of blocks is met once and all have equal work. A tile's row sums need few
    exchanges between threads and are stored at once; its column sums would need many, and are
    kept element by element until the end. The row sums of the tile at distance d have a place of
    their own in row d of the buffer, so nothing is added atomically and the result does not depend
    on the order of the programs. Logits are known to be small enough for 2^t to need no maximum.
    """
    blocks = tl.cdiv(M, BLOCK)
    block = tl.program_id(0)
    segment = tl.program_id(1)
    local = tl.arange(0, BLOCK)
    column_first = block * BLOCK
    columns = column_first + local

    # With an even number of blocks the farthest distance meets each pair twice: drop one.
    distances = blocks // 2 + ((blocks % 2 == 1) | (block < blocks // 2)).to(tl.int32)
    begin = first + segment * run
    end = tl.minimum(tl.minimum(begin + run, last), distances)

    column_norm = tl.load(inverse_norm_ptr + columns, mask=columns < M, other=0.0)
    column_coefficient = tl.load(base2_ptr) * column_norm  # [BN]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        y = load_rows(x_ptr, column_first, local, features, M, D, BLOCK_D)  # [BN, BD]
    sums = tl.zeros([BLOCK // 16, 8, BLOCK], tl.float32)
    for distance in range(begin, end):
        row_block = block + distance
        row_block = tl.where(row_block >= blocks, row_block - blocks, row_block)
        row_first = row_block * BLOCK
        rows = row_first + local
        row_norm = tl.load(inverse_norm_ptr + rows, mask=rows < M, other=0.0)  # [BM]
        if BLOCK_D >= D:
            x = load_rows(x_ptr, row_first, local, features, M, D, BLOCK_D)  # [BM, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK, BLOCK], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, row_first, local, M, x_ptr, column_first, local, M,
                D, BLOCK, BLOCK, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
        t = raw * (row_norm[:, None] * column_coefficient[None, :])  # [BM, BN]
        special = (row_first + BLOCK > M) | (column_first + BLOCK > M)
        if HAS_SELF:
            special = special | crosses(row_first, column_first, self_offset, M, BLOCK, BLOCK)
        if EXCLUDE_PAIR:
            special = special | crosses(row_first, column_first, pair_offset, M, BLOCK, BLOCK)
        if special:
            allowed = allowed_entries(
                rows[:, None], columns[None, :], M, M, self_offset, pair_offset,
                HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
            t = tl.where(allowed, t, float("-inf"))
        e = tl.exp2(t)  # [BM, BN]
        # The tensor cores' layout gives a thread rows r and r + 8: those two are joined at once.
        sums += tl.sum(tl.reshape(e, [BLOCK // 16, 2, 8, BLOCK]), 1)
        # The diagonal tile is whole: its row sums are its column sums.
        place = tl.cast(distance - first, tl.int64) * M
        tl.store(row_sums_ptr + place + rows, tl.sum(e, 1), mask=(rows < M) & (distance > 0))
    place = tl.cast(segment, tl.int64) * M
    sums = tl.sum(tl.reshape(sums, [BLOCK // 2, BLOCK]), 0)
    tl.store(column_sums_ptr + place + columns, sums, mask=columns < M)


@triton.jit(do_not_specialize=["first", "last", "segments"])
def _similarity_lse_fwd_triangle_finish_kernel(
    x_ptr,  # [M, D]
    row_sums_ptr,  # [last − first, M] f32
    column_sums_ptr,  # [segments, M] f32
    inverse_norm_ptr,  # [M] f32
    base2_ptr,  # [1] f32
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
    slots = tl.arange(0, SLOTS)
    total = tl.zeros([ROWS], tl.float64)
    if not FIRST:
        total += tl.load(lse_ptr + rows, mask=inside, other=0.0)
    for segment in range(0, segments, SLOTS):
        slot = segment + slots
        part = tl.load(
            column_sums_ptr + slot.to(tl.int64)[:, None] * M + rows[None, :],
            mask=(slot < segments)[:, None] & inside[None, :],
            other=0.0,
        )  # [SLOTS, ROWS]
        total += tl.sum(part.to(tl.float64), 0)
    blocks = tl.cdiv(M, BLOCK)
    for distance in range(first, last, SLOTS):
        slot = distance + slots
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


@triton.jit
def _similarity_lse_fwd_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M] f32
    column_norm_ptr,  # [K] f32
    base2_ptr,  # [1] f32
    sums_ptr,  # [segments, M] f32
    maxima_ptr,  # [segments, M] f32, unless BOUNDED
    M,
    K,
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
    """Row sums of 2^(t − max) over one segment of the columns; max is 0 if BOUNDED."""
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    row_first = tl.program_id(0) * BLOCK_M
    rows = row_first + local_m
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))

    norm = tl.load(row_norm_ptr + rows, mask=rows < M, other=0.0)
    row_coefficient = tl.load(base2_ptr) * norm  # [BM]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    sums = tl.zeros([BLOCK_M], tl.float32)
    maxima = tl.full([BLOCK_M], LOWEST, tl.float32)
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
        t = raw * (row_coefficient[:, None] * column_norm[None, :])  # [BM, BN]
        special = column_first + BLOCK_N > K
        if HAS_SELF:
            special = special | crosses(row_first, column_first, self_offset, K, BLOCK_M, BLOCK_N)
        if EXCLUDE_PAIR:
            special = special | crosses(row_first, column_first, pair_offset, K, BLOCK_M, BLOCK_N)
        if special:
            allowed = allowed_entries(
                rows[:, None], columns[None, :], M, K, self_offset, pair_offset,
                HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
            t = tl.where(allowed, t, float("-inf"))
        if BOUNDED:
            e = tl.exp2(t)  # [BM, BN]
        else:
            largest = tl.maximum(maxima, tl.max(t, 1))  # [BM]
            e = tl.exp2(t - largest[:, None])  # [BM, BN]
            sums *= tl.exp2(maxima - largest)
            maxima = largest
        sums += tl.sum(e, 1)
    place = tl.cast(segment, tl.int64) * M + rows
    tl.store(sums_ptr + place, sums, mask=rows < M)
    if not BOUNDED:
        tl.store(maxima_ptr + place, maxima, mask=rows < M)


@triton.jit(do_not_specialize=["segments"])
def _similarity_lse_fwd_finish_kernel(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    sums_ptr,  # [segments, M] f32
    maxima_ptr,  # [segments, M] f32, unless BOUNDED
    row_norm_ptr,  # [M] f32
    column_norm_ptr,  # [K] f32
    base2_ptr,  # [1] f32
    lse_ptr,  # [M] f64
    pair_ptr,  # [M] f64
    M,
    K,
    segments,
    pair_offset,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BOUNDED: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Join the segments' sums, each relative to its own maximum."""
    _store_pairs(
        x_ptr, y_ptr, row_norm_ptr, column_norm_ptr, base2_ptr, pair_ptr,
        tl.program_id(0) * ROWS, pair_offset, M, K,
        D, ROWS, BLOCK_D, HAS_PAIR, PRECISION, INTERPRETED,
    )  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < M
    largest = tl.zeros([ROWS], tl.float32)
    if not BOUNDED:
        largest += LOWEST
        for segment in range(0, segments):
            place = tl.cast(segment, tl.int64) * M + rows
            largest = tl.maximum(largest, tl.load(maxima_ptr + place, mask=inside, other=LOWEST))
    total = tl.zeros([ROWS], tl.float64)
    for segment in range(0, segments):
        place = tl.cast(segment, tl.int64) * M + rows
        part = tl.load(sums_ptr + place, mask=inside, other=0.0)
        if not BOUNDED:
            part *= tl.exp2(tl.load(maxima_ptr + place, mask=inside, other=LOWEST) - largest)
        total += part.to(tl.float64)
    lse = tl.log(total) + largest.to(tl.float64) * LN2
    tl.store(lse_ptr + rows, lse, mask=inside)
