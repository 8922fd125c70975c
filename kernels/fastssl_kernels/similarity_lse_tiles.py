"""What the kernels of ``similarity_lse`` share: loads, products and masks of tiles."""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# A floor for running maxima that is finite, so that −inf − floor is −inf and not NaN.
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


@triton.jit
def load_rows(ptr, first, local, features, count, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows ``first + local`` of a contiguous [count, D] matrix, zero outside."""
    inside = (first + local < count)[:, None]  # [ROWS, 1]
    if D % BLOCK_D != 0:
        inside = inside & (features < D)[None, :]
    base = ptr + tl.cast(first, tl.int64) * D  # one 64-bit product a tile, 32-bit ones within
    return tl.load(base + local[:, None] * D + features[None, :], mask=inside, other=0.0)


@triton.jit
def gather_rows(ptr, rows, features, inside, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Any rows of a contiguous [*, D] matrix, zero where not ``inside``."""
    inside = inside[:, None]
    if D % BLOCK_D != 0:
        inside = inside & (features < D)[None, :]
    offsets = rows.to(tl.int64)[:, None] * D + features[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0)  # [ROWS, BLOCK_D]


# Triton's interpreter multiplies the bit patterns of bfloat16, and cuts off where it should round
# to the nearest bfloat16; INTERPRETED makes up for both.


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """``acc + a·b``; a float64 ``acc`` asks for float64 products."""
    if acc.dtype == tl.float64:
        a = a.to(tl.float64)
        b = b.to(tl.float64)
    elif INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """``x`` rounded to nearest in ``dtype``."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def products_by_chunks(
    x_ptr,
    x_first,
    x_local,
    M,
    y_ptr,
    y_first,
    y_local,
    K,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    ACC: tl.constexpr = tl.float32,
):
    """Raw products of two row blocks too wide to be held whole."""
    raw = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for d in range(0, D, BLOCK_D):
        features = d + tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, x_first, x_local, features, M, D, BLOCK_D)  # [BM, BD]
        y = load_rows(y_ptr, y_first, y_local, features, K, D, BLOCK_D)  # [BN, BD]
        raw = dot(x, y.T, raw, PRECISION, INTERPRETED)
    return raw


@triton.jit
def crosses(row_first, column_first, offset, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds an entry with column = (row + offset) mod K."""
    ahead = column_first - (row_first + offset) % K
    ahead = tl.where(ahead < 0, ahead + K, ahead)
    return (ahead < BLOCK_M) | (ahead > K - BLOCK_N)


@triton.jit
def allowed_entries(
    rows,
    columns,
    M,
    K,
    self_offset,
    pair_offset,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
):
    """Entries that belong to their row's sum; rows and columns come ready to broadcast."""
    allowed = columns < tl.where(rows < M, K, 0)
    if HAS_SELF:
        allowed = allowed & ((rows + self_offset) % K != columns)
    if EXCLUDE_PAIR:
        allowed = allowed & ((rows + pair_offset) % K != columns)
    return allowed


@triton.jit
def mask(
    values,
    fill,
    rows,
    row_first,
    M,
    BLOCK_M: tl.constexpr,
    columns,
    column_first,
    K,
    BLOCK_N: tl.constexpr,
    self_offset,
    pair_offset,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
):
    """``values`` of a tile, with ``fill`` for entries that belong to no sum; most tiles have none.

    Rows and columns come ready to broadcast: a tile may hold its rows along either dimension.
    """
    special = (row_first + BLOCK_M > M) | (column_first + BLOCK_N > K)
    if HAS_SELF:
        special = special | crosses(row_first, column_first, self_offset, K, BLOCK_M, BLOCK_N)
    if EXCLUDE_PAIR:
        special = special | crosses(row_first, column_first, pair_offset, K, BLOCK_M, BLOCK_N)
    if special:
        allowed = allowed_entries(
            rows, columns, M, K, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR
        )
        values = tl.where(allowed, values, fill)
    return values
