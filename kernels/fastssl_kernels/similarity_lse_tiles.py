"""What the forward and backward kernels of ``similarity_lse`` share: tiles, masks, row facts."""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
# Rows with a smaller norm count as zero vectors, as in the reference.
NORM_EPS: tl.constexpr = tl.constexpr(1e-12)
# Products of longer rows could leave float32: better NaN than a finite number that is wrong.
NORM_MAX: tl.constexpr = tl.constexpr(1e18)


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
    """``acc + a·b``, accumulated in float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def narrow(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 ``x`` rounded to nearest in ``dtype``."""
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
):
    """Raw products of two row blocks too wide to be held whole."""
    raw = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
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
def _similarity_lse_rows_kernel(
    x_ptr,  # [M, D]
    inverse_norm_ptr,  # [M] f32
    lse_ptr,  # [M] f64, or None in the forward
    d_lse_ptr,  # [M] f64, or None in the forward
    weight_ptr,  # [M] f32
    exponent_ptr,  # [M] f32, unless BOUNDED
    scale_ptr,  # [], or None for 1
    base2_ptr,  # [1] f32, or None
    factor,
    M,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """What every tile needs to know of a row: its inverse norm and, for gradients, its weight.

    A row's softmax is ``exp(logit − lse) = 2^(t − exponent) · 2^(exponent − lse2)`` in base 2. The
    exponent is a whole number, so the subtraction from t loses nothing, and the second
    factor, taken here in float64, carries the digits of lse that float32 has no room for.

    Besides: the one value of scale · factor · log2(e) that all later passes use. A logit t is the
    product of two vectors times that, rounded to float32 the same way wherever it is computed, so
    that differences of large logits keep their digits.
    """
    if base2_ptr is not None and tl.program_id(0) == 0:
        base2 = tl.cast(factor, tl.float64) * LOG2E
        if scale_ptr is not None:
            base2 *= tl.load(scale_ptr).to(tl.float64)
        tl.store(base2_ptr, base2.to(tl.float32))
    first = tl.program_id(0) * ROWS
    local = tl.arange(0, ROWS)
    rows = first + local
    inside = rows < M

    x = load_rows(x_ptr, first, local, tl.arange(0, BLOCK_D), M, D, BLOCK_D).to(tl.float32)
    largest = tl.max(tl.abs(x), 1)
    unit = tl.where(largest > 0, largest, 1.0)  # keeps the squares in range
    x = x / unit[:, None]
    squares = tl.sum(x * x, 1)  # NaN for a NaN anywhere, and for inf/inf
    if NORMALIZE:
        norm = unit * tl.sqrt_rn(squares)
        inverse = tl.where(norm < NORM_EPS, 0.0, 1.0 / norm)
        inverse = tl.where(norm <= NORM_MAX, inverse, float("nan"))
    else:
        inverse = tl.where(squares >= 0, 1.0, float("nan"))
    tl.store(inverse_norm_ptr + rows, inverse, mask=inside)

    if lse_ptr is not None:
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0) * LOG2E
        nothing = lse == float("-inf")
        lse = tl.where(nothing, 0.0, lse)
        exponent = tl.floor(lse + 0.5)
        rest = tl.exp2((exponent - lse).to(tl.float32))
        weight = tl.load(d_lse_ptr + rows, mask=inside, other=0.0) * rest.to(tl.float64)
        weight = tl.where(nothing, 0.0, weight).to(tl.float32)
        exponent = exponent.to(tl.float32)
        if BOUNDED:
            weight = weight * tl.exp2(-exponent)
        else:
            tl.store(exponent_ptr + rows, exponent, mask=inside)
        tl.store(weight_ptr + rows, weight, mask=inside)
