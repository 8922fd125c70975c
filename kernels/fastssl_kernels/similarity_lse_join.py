"""The last pass of ``similarity_lse``'s forward: partial sums joined, and the logits of pairs."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_tiles import LN2, LOWEST, dot, gather_rows, load_rows


@triton.jit
def join(
    total,  # [ROWS] f64
    largest,  # [ROWS] f64: total counts multiples of 2^largest
    sums_ptr,  # [segments, M]
    maxima_ptr,  # [segments, M], or None for zeros
    segments,
    rows,
    M,
    SLOTS: tl.constexpr,
):
    """Add the segments' sums, each relative to its own maximum, always in the same order."""
    for segment in range(0, segments, SLOTS):
        slot = segment + tl.arange(0, SLOTS)
        there = (slot < segments)[:, None] & (rows < M)[None, :]
        place = slot.to(tl.int64)[:, None] * M + rows[None, :]
        part = tl.load(sums_ptr + place, mask=there, other=0.0).to(tl.float64)  # [SLOTS, ROWS]
        if maxima_ptr is not None:
            maxima = tl.load(maxima_ptr + place, mask=there, other=LOWEST).to(tl.float64)
            raised = tl.maximum(largest, tl.max(maxima, 0))
            part *= tl.exp2(maxima - raised[None, :])
            total *= tl.exp2(largest - raised)
            largest = raised
        total += tl.sum(part, 0)
    return total, largest


@triton.jit
def _store_pairs(
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    row_norm_ptr,  # [M]
    column_norm_ptr,  # [K]
    base2_ptr,  # [1] f64
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
    """The logits of a block of rows with their pairs.

    float32 vectors are multiplied in float64. The others' logits come from the diagonal of one
    more tile, for the same instructions and roundings as the negatives': at low temperature the
    loss is a small difference of large logits.
    """
    local = tl.arange(0, ROWS)
    rows = first + local
    inside = rows < M
    if HAS_PAIR:
        partner = (rows + pair_offset) % K
        row_norm = tl.load(row_norm_ptr + rows, mask=inside, other=0.0)
        column_norm = tl.load(column_norm_ptr + partner, mask=inside, other=0.0)
        coefficient = tl.load(base2_ptr) * row_norm  # [ROWS] f64
        if x_ptr.dtype.element_ty == tl.float32:
            raw = tl.zeros([ROWS], tl.float64)
            for d in range(0, D, BLOCK_D):
                features = d + tl.arange(0, BLOCK_D)
                x = load_rows(x_ptr, first, local, features, M, D, BLOCK_D)  # [ROWS, BD]
                y = gather_rows(y_ptr, partner, features, inside, D, BLOCK_D)  # [ROWS, BD]
                raw += tl.sum(x.to(tl.float64) * y.to(tl.float64), 1)
            t = raw * coefficient * column_norm
        else:
            tile = tl.zeros([ROWS, ROWS], tl.float32)
            for d in range(0, D, BLOCK_D):
                features = d + tl.arange(0, BLOCK_D)
                x = load_rows(x_ptr, first, local, features, M, D, BLOCK_D)  # [ROWS, BD]
                y = gather_rows(y_ptr, partner, features, inside, D, BLOCK_D)  # [ROWS, BD]
                tile = dot(x, y.T, tile, PRECISION, INTERPRETED)
            raw = tl.sum(tl.where(local[:, None] == local[None, :], tile, 0.0), 1)  # [ROWS]
            t = raw * (coefficient.to(tl.float32) * column_norm)
        logit = t.to(tl.float64) * LN2
    else:
        logit = tl.zeros([ROWS], tl.float64)
    tl.store(pair_ptr + rows, logit, mask=inside)
