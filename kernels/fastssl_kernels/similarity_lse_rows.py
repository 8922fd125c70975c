"""What every tile of ``similarity_lse`` needs to know of a row or column, found in one pass."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_tiles import LOG2E, load_rows

# Rows with a smaller norm count as zero vectors, as in the reference.
NORM_EPS: tl.constexpr = tl.constexpr(1e-12)
# Products of longer rows could leave float32: better NaN than a finite number that is wrong.
NORM_MAX: tl.constexpr = tl.constexpr(1e18)


@triton.jit
def _store_facts(
    block,
    x_ptr,
    norm_ptr,
    lse_ptr,
    d_lse_ptr,
    weight_ptr,
    exponent_ptr,
    M,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """One block of one side: inverse norms and, where there are gradients, softmax weights.

    A row's softmax is ``exp(logit − lse) = 2^(t − exponent) · 2^(exponent − lse2)`` in base 2. The
    exponent is a whole number, so the subtraction from t loses nothing, and the second
    factor, taken here in float64, carries the digits of lse that float32 has no room for.
    """
    first = block * ROWS
    local = tl.arange(0, ROWS)
    rows = first + local
    inside = rows < M
    x = load_rows(x_ptr, first, local, tl.arange(0, BLOCK_D), M, D, BLOCK_D)  # [ROWS, BD]
    if x.dtype == tl.float32:
        x = x.to(tl.float64)
        norm = tl.sqrt(tl.sum(x * x, 1))  # [ROWS]
    else:
        x = x.to(tl.float32)
        largest = tl.max(tl.abs(x), 1)
        unit = tl.where(largest > 0, largest, 1.0)  # keeps the squares in range
        x = x / unit[:, None]
        norm = unit * tl.sqrt_rn(tl.sum(x * x, 1))
    if NORMALIZE:
        inverse = tl.where(norm < NORM_EPS, 0.0, 1.0 / norm)
        inverse = tl.where(norm <= NORM_MAX, inverse, float("nan"))
    else:
        inverse = tl.where(norm < float("inf"), 1.0, float("nan"))
    tl.store(norm_ptr + rows, inverse, mask=inside)

    if lse_ptr is not None:
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0) * LOG2E
        nothing = lse == float("-inf")
        lse = tl.where(nothing, 0.0, lse)
        exponent = tl.floor(lse + 0.5)
        weight = tl.load(d_lse_ptr + rows, mask=inside, other=0.0)
        if exponent_ptr is None:  # the logits are small enough to do without
            weight *= tl.exp2(-lse)
        else:
            exponent = exponent.to(exponent_ptr.dtype.element_ty)
            tl.store(exponent_ptr + rows, exponent, mask=inside)
            weight *= tl.exp2(exponent.to(tl.float64) - lse)
        tl.store(weight_ptr + rows, tl.where(nothing, 0.0, weight), mask=inside)


@triton.jit
def _similarity_lse_rows_kernel(
    x_ptr,  # [M, D]
    x_norm_ptr,  # [M] inverse norms, as are all norms here
    x_lse_ptr,  # [M] f64, or None in the forward
    x_d_lse_ptr,  # [M] f64, or None in the forward
    x_weight_ptr,  # [M] f32, or None in the forward
    x_exponent_ptr,  # [M] f64 where logits are, else f32; or None in the forward or if bounded
    y_ptr,  # [K, D], or None
    y_norm_ptr,  # the same for the columns; sums and what follows only if columns have any
    y_lse_ptr,
    y_d_lse_ptr,
    y_weight_ptr,
    y_exponent_ptr,
    pairs_ptr,  # [M, D], or None
    pairs_norm_ptr,
    scale_ptr,  # [], or None for 1
    base2_ptr,  # [1] f64, or None
    factor: tl.float64,
    M,
    K,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Inverse norms and weights of both sides, inverse norms of pairs that are no columns, and
    scale · factor · log2(e), one for all logits."""
    block = tl.program_id(0)
    if base2_ptr is not None and block == 0:
        base2 = tl.full([], LOG2E, tl.float64) * factor
        if scale_ptr is not None:
            base2 *= tl.load(scale_ptr).to(tl.float64)
        tl.store(base2_ptr, base2)
    x_blocks = tl.cdiv(M, ROWS)
    if block < x_blocks:
        _store_facts(
            block, x_ptr, x_norm_ptr, x_lse_ptr, x_d_lse_ptr, x_weight_ptr, x_exponent_ptr,
            M, D, BLOCK_D, ROWS, NORMALIZE,
        )  # fmt: skip
        if pairs_ptr is not None:
            _store_facts(
                block, pairs_ptr, pairs_norm_ptr, None, None, None, None,
                M, D, BLOCK_D, ROWS, NORMALIZE,
            )  # fmt: skip
    elif y_ptr is not None:
        _store_facts(
            block - x_blocks, y_ptr, y_norm_ptr, y_lse_ptr, y_d_lse_ptr, y_weight_ptr,
            y_exponent_ptr, K, D, BLOCK_D, ROWS, NORMALIZE,
        )  # fmt: skip
