"""Backward kernels of ``similarity_lse``: one pass for each side that needs gradients."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    dot,
    gather_rows,
    load_rows,
    mask,
    narrow,
    products_by_chunks,
)


@triton.jit
def _similarity_lse_bwd_kernel(
    x_ptr,  # [M, D] own vectors, whose gradient this is
    y_ptr,  # [K, D] the others
    own_norm_ptr,  # [M]
    other_norm_ptr,  # [K]
    own_weight_ptr,  # [M] f32, or None if own vectors have no sums with gradients
    own_exponent_ptr,  # [M], or None if BOUNDED as well
    other_weight_ptr,  # [K] f32, or None
    other_exponent_ptr,  # [K], or None
    gain_ptr,  # [] f32, or None for 1
    base2_ptr,  # [1] f64
    d_x_ptr,  # [splits, count, D] f32
    d_scale_ptr,  # [splits + 1, count], or None
    M,
    K,
    first_own,
    count,
    run,
    self_offset,
    pair_offset,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BY_OWN: tl.constexpr,
    BY_OTHER: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_j G_ij ŷ_j for a block of own vectors, G recomputed tile by tile.

    ``G_ij = p_ij d_i + q_ij d_j``, p being the softmax over the others and q that over the own
    vectors; each is left out where its sums have no gradients. The rows of the matrix may be the
    own vectors (BY_OWN), the others (BY_OTHER), or, the matrix being symmetric, both: then one
    product does for two. The raw vectors go to the tensor cores as they are; the inverse norms of
    the others ride on G.
    """
    ACC: tl.constexpr = tl.float64 if EXACT else tl.float32
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
    own_coefficient = (tl.load(base2_ptr) * own_norm).to(ACC)
    gain = 1.0
    if gain_ptr is not None:
        gain = tl.load(gain_ptr)
    if own_weight_ptr is not None:
        own_weight = tl.load(own_weight_ptr + own, mask=inside, other=0.0) * gain
        if not BOUNDED:
            own_exponent = tl.load(own_exponent_ptr + own, mask=inside, other=0.0)
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, own_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    d_x = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    d_scale = tl.zeros([BLOCK_M], ACC)

    for other_block in range(begin, end):
        other_first = other_block * BLOCK_N
        other = other_first + local_n
        if BLOCK_D >= D:
            y = load_rows(y_ptr, other_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], ACC), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, own_first, local_m, M, y_ptr, other_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED, ACC,
            )  # fmt: skip
            out_features = out_first + tl.arange(0, BLOCK_OUT)
            y = load_rows(y_ptr, other_first, local_n, out_features, K, D, BLOCK_OUT)  # [BN, BO]
        other_norm = tl.load(other_norm_ptr + other, mask=other < K, other=0.0)  # [BN]
        t = raw * (own_coefficient[:, None] * other_norm.to(ACC)[None, :])  # [BM, BN]
        if other_weight_ptr is not None:
            other_weight = tl.load(other_weight_ptr + other, mask=other < K, other=0.0) * gain
            if not BOUNDED:
                other_exponent = tl.load(other_exponent_ptr + other, mask=other < K, other=0.0)

        if BOUNDED:
            e = tl.exp2(t)  # [BM, BN]
            if own_weight_ptr is None:
                g = e * other_weight[None, :]
            elif other_weight_ptr is None:
                g = e * own_weight[:, None]
            else:
                g = e * (own_weight[:, None] + other_weight[None, :])
        else:
            if own_weight_ptr is not None:
                g = tl.exp2((t - own_exponent[:, None]).to(tl.float32)) * own_weight[:, None]
            if other_weight_ptr is not None:
                e = tl.exp2((t - other_exponent[None, :]).to(tl.float32)) * other_weight[None, :]
                g = e if own_weight_ptr is None else g + e
        g *= other_norm.to(tl.float32)[None, :]  # [BM, BN]
        if BY_OWN:
            g = mask(
                g, 0.0, own[:, None], own_first, M, BLOCK_M, other[None, :], other_first,
                K, BLOCK_N, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
        else:
            g = mask(
                g, 0.0, other[None, :], other_first, K, BLOCK_N, own[:, None], own_first,
                M, BLOCK_M, self_offset, pair_offset, HAS_SELF, EXCLUDE_PAIR,
            )  # fmt: skip
        if d_scale_ptr is not None:
            d_scale += tl.sum(g * raw, 1)
        d_x = dot(narrow(g, y.dtype, INTERPRETED), y, d_x, PRECISION, INTERPRETED)

    place = tl.cast(split, tl.int64) * count + (own - first_own)
    if d_scale_ptr is not None:
        # In the symmetric case each logit is met twice.
        d_scale *= own_norm * (0.5 if BY_OWN and BY_OTHER else 1.0) / gain
        if out_first == 0:
            tl.store(d_scale_ptr + place, d_scale, mask=inside)
    out_features = out_first + tl.arange(0, BLOCK_OUT)
    tl.store(
        d_x_ptr + place[:, None] * D + out_features[None, :],
        d_x / gain,
        mask=inside[:, None] & (out_features < D)[None, :],
    )


@triton.jit
def _similarity_lse_bwd_finish_kernel(
    partial_ptr,  # [splits, count, D] f32
    x_ptr,  # [M, D]
    y_ptr,  # [K, D]
    own_norm_ptr,  # [M]
    other_norm_ptr,  # [K]
    d_pair_ptr,  # [M] f64 if BY_OWN, else [K]
    base2_ptr,  # [1] f64
    d_x_ptr,  # [M, D]
    d_scale_ptr,  # [splits + 1, count], or None
    M,
    K,
    first_own,
    count,
    splits,
    pair_offset,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    BY_OWN: tl.constexpr,
    BY_OTHER: tl.constexpr,
    NORMALIZE: tl.constexpr,
    HAS_PAIR: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Join the splits, add the pairs, and go back through the normalisation.

    For float32 vectors in float64: what the normalisation leaves may be small beside what it takes.
    """
    WIDE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float32 else tl.float32
    own = first_own + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = own - first_own < count
    own_norm = tl.load(own_norm_ptr + own, mask=inside, other=0.0)  # [ROWS]
    features = tl.arange(0, BLOCK_D)
    d_x = tl.zeros([ROWS, BLOCK_D], WIDE)
    for split in range(0, splits):
        place = tl.cast(split, tl.int64) * count + (own - first_own)
        d_x += gather_rows(partial_ptr, place, features, inside, D, BLOCK_D)
    own_x = gather_rows(x_ptr, own, features, inside, D, BLOCK_D).to(WIDE)
    own_x *= own_norm[:, None]
    from_pairs = tl.zeros([ROWS], WIDE)
    if HAS_PAIR:
        if BY_OWN:
            partner = (own + pair_offset) % K
            weight = tl.load(d_pair_ptr + own, mask=inside, other=0.0)
            weight = (weight * tl.load(other_norm_ptr + partner, mask=inside, other=0.0)).to(WIDE)
            term = weight[:, None] * gather_rows(y_ptr, partner, features, inside, D, BLOCK_D)
            from_pairs = tl.sum(term * own_x, 1)
            d_x += term
        if BY_OTHER:
            # Columns repeat every M rows: all rows congruent to own − offset have own as pair.
            begin = (own + M - pair_offset) % M
            for turn in range(0, tl.cdiv(K, M)):
                row = begin + turn * M
                valid = inside & (row < K)
                weight = tl.load(d_pair_ptr + row, mask=valid, other=0.0)
                weight = (weight * tl.load(other_norm_ptr + row, mask=valid, other=0.0)).to(WIDE)
                d_x += weight[:, None] * gather_rows(y_ptr, row, features, valid, D, BLOCK_D)
    if d_scale_ptr is not None:
        tl.store(
            d_scale_ptr + tl.cast(splits, tl.int64) * count + (own - first_own),
            from_pairs,
            mask=inside,
        )
    if NORMALIZE:
        d_x -= own_x * tl.sum(own_x * d_x, 1)[:, None]
    d_x *= (tl.load(base2_ptr) * LN2 * own_norm).to(WIDE)[:, None]
    offsets = own.to(tl.int64)[:, None] * D + features[None, :]
    tl.store(
        d_x_ptr + offsets,
        narrow(d_x, d_x_ptr.dtype.element_ty, INTERPRETED),
        mask=inside[:, None] & (features < D)[None, :],
    )
