"""Backward kernels of ``similarity_lse``: one matrix product for each side that needs gradients."""

import triton
import triton.language as tl

from fastssl_kernels.similarity_lse_tiles import (
    LN2,
    allowed_entries,
    crosses,
    dot,
    gather_rows,
    load_rows,
    narrow,
    products_by_chunks,
)


@triton.jit
def _similarity_lse_bwd_kernel(
    x_ptr,  # [M, D] own vectors, whose gradient this is
    y_ptr,  # [K, D] the others
    own_norm_ptr,  # [M] f32
    other_norm_ptr,  # [K] f32
    own_weight_ptr,  # [M] f32, if BY_OWN
    own_exponent_ptr,  # [M] f32, if BY_OWN and not BOUNDED
    other_weight_ptr,  # [K] f32, if BY_OTHER
    other_exponent_ptr,  # [K] f32, if BY_OTHER and not BOUNDED
    gain_ptr,  # [] f32, or None for 1
    base2_ptr,  # [1] f32
    d_x_ptr,  # [splits, count, D] f32
    d_scale_ptr,  # [splits + 1, count] f32, or None
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
    HAS_SELF: tl.constexpr,
    EXCLUDE_PAIR: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Σ_j G_ij ŷ_j for a block of own vectors, G recomputed tile by tile.

    Own vectors may be the rows of the sums (BY_OWN), their columns (BY_OTHER), or, the matrix
    being symmetric, both: then ``G_ij = p_ij d_i + p_ji d_j`` makes one product do for two. The raw
    vectors go to the tensor cores as they are; the inverse norms of the others ride on G.
    """
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
    own_coefficient = tl.load(base2_ptr) * own_norm
    gain = 1.0
    if gain_ptr is not None:
        gain = tl.load(gain_ptr)
    if BY_OWN:
        own_weight = tl.load(own_weight_ptr + own, mask=inside, other=0.0) * gain
        if not BOUNDED:
            own_exponent = tl.load(own_exponent_ptr + own, mask=inside, other=0.0)
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, own_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    d_x = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    d_scale = tl.zeros([BLOCK_M], tl.float32)

    for other_block in range(begin, end):
        other_first = other_block * BLOCK_N
        other = other_first + local_n
        if BLOCK_D >= D:
            y = load_rows(y_ptr, other_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            raw = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            raw = products_by_chunks(
                x_ptr, own_first, local_m, M, y_ptr, other_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
            out_features = out_first + tl.arange(0, BLOCK_OUT)
            y = load_rows(y_ptr, other_first, local_n, out_features, K, D, BLOCK_OUT)  # [BN, BO]
        other_norm = tl.load(other_norm_ptr + other, mask=other < K, other=0.0)  # [BN]
        t = raw * (own_coefficient[:, None] * other_norm[None, :])  # [BM, BN]
        if BY_OTHER:
            other_weight = tl.load(other_weight_ptr + other, mask=other < K, other=0.0) * gain
            if not BOUNDED:
                other_exponent = tl.load(other_exponent_ptr + other, mask=other < K, other=0.0)

        if BOUNDED:
            e = tl.exp2(t)  # [BM, BN]
            if BY_OWN and BY_OTHER:
                g = e * (own_weight[:, None] + other_weight[None, :])
            elif BY_OWN:
                g = e * own_weight[:, None]
            else:
                g = e * other_weight[None, :]
        else:
            if BY_OWN:
                g = tl.exp2(t - own_exponent[:, None]) * own_weight[:, None]
            if BY_OTHER:
                e = tl.exp2(t - other_exponent[None, :]) * other_weight[None, :]
                g = g + e if BY_OWN else e
        g *= other_norm[None, :]  # [BM, BN]

        special = other_first + BLOCK_N > K
        if BY_OWN:
            if HAS_SELF:
                special = special | crosses(
                    own_first, other_first, self_offset, K, BLOCK_M, BLOCK_N
                )
            if EXCLUDE_PAIR:
                special = special | crosses(
                    own_first, other_first, pair_offset, K, BLOCK_M, BLOCK_N
                )
        else:
            if HAS_SELF:
                special = special | crosses(
                    other_first, own_first, self_offset, M, BLOCK_N, BLOCK_M
                )
            if EXCLUDE_PAIR:
                special = special | crosses(
                    other_first, own_first, pair_offset, M, BLOCK_N, BLOCK_M
                )
        if special:
            if BY_OWN:
                allowed = allowed_entries(
                    own[:, None], other[None, :], M, K, self_offset, pair_offset,
                    HAS_SELF, EXCLUDE_PAIR,
                )  # fmt: skip
            else:
                allowed = allowed_entries(
                    other[None, :], own[:, None], K, M, self_offset, pair_offset,
                    HAS_SELF, EXCLUDE_PAIR,
                )  # fmt: skip
            g = tl.where(allowed, g, 0.0)
        if d_scale_ptr is not None:
            d_scale += tl.sum(g * raw, 1)
        d_x = dot(narrow(g, y.dtype, INTERPRETED), y, d_x, PRECISION, INTERPRETED)

    place = tl.cast(split, tl.int64) * count + (own - first_own)
    if d_scale_ptr is not None:
        # A symmetric G holds both p_ij and p_ji: each logit is met twice.
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
    own_norm_ptr,  # [M] f32
    other_norm_ptr,  # [K] f32
    d_pair_ptr,  # [M] f64 if BY_OWN, else [K]
    base2_ptr,  # [1] f32
    d_x_ptr,  # [M, D]
    d_scale_ptr,  # [splits + 1, count] f32, or None
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
    """Join the splits, add the pairs, and go back through the normalisation."""
    own = first_own + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = own - first_own < count
    own_norm = tl.load(own_norm_ptr + own, mask=inside, other=0.0)  # [ROWS]
    features = tl.arange(0, BLOCK_D)
    d_x = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for split in range(0, splits):
        place = tl.cast(split, tl.int64) * count + (own - first_own)
        d_x += gather_rows(partial_ptr, place, features, inside, D, BLOCK_D)
    own_x = gather_rows(x_ptr, own, features, inside, D, BLOCK_D).to(tl.float32)
    own_x *= own_norm[:, None]
    from_pairs = tl.zeros([ROWS], tl.float32)
    if HAS_PAIR:
        if BY_OWN:
            partner = (own + pair_offset) % K
            weight = tl.load(d_pair_ptr + own, mask=inside, other=0.0).to(tl.float32)
            weight *= tl.load(other_norm_ptr + partner, mask=inside, other=0.0)
            term = weight[:, None] * gather_rows(y_ptr, partner, features, inside, D, BLOCK_D)
            from_pairs = tl.sum(term * own_x, 1)
            d_x += term
        if BY_OTHER:
            # Columns repeat every M rows: all rows congruent to own − offset have own as pair.
            begin = (own + M - pair_offset) % M
            for turn in range(0, tl.cdiv(K, M)):
                row = begin + turn * M
                valid = inside & (row < K)
                weight = tl.load(d_pair_ptr + row, mask=valid, other=0.0).to(tl.float32)
                weight *= tl.load(other_norm_ptr + row, mask=valid, other=0.0)
                d_x += weight[:, None] * gather_rows(y_ptr, row, features, valid, D, BLOCK_D)
    if d_scale_ptr is not None:
        tl.store(
            d_scale_ptr + tl.cast(splits, tl.int64) * count + (own - first_own),
            from_pairs,
            mask=inside,
        )
    if NORMALIZE:
        d_x -= own_x * tl.sum(own_x * d_x, 1)[:, None]
    d_x *= (tl.load(base2_ptr) * LN2 * own_norm)[:, None]
    offsets = own.to(tl.int64)[:, None] * D + features[None, :]
    tl.store(
        d_x_ptr + offsets,
        narrow(d_x, d_x_ptr.dtype.element_ty, INTERPRETED),
        mask=inside[:, None] & (features < D)[None, :],
    )
