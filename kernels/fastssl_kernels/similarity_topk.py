"""``similarity_topk`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Each program holds a block of queries against a segment of the bank. A similarity above the
query's k-th largest so far is put aside, as one number with its index; when there is room for no
more, all but the k largest are dropped. A last pass joins the segments and orders.
Nothing here waits for the device, and every result is bitwise repeatable.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl_kernels.similarity_lse_plan import _find_facts, _launch, _plan
from fastssl_kernels.similarity_lse_shapes import Tiles, cdiv, next_power_of_2
from fastssl_kernels.similarity_lse_tiles import dot, load_rows, products_by_chunks

MOST = 1024  # neighbours
KEYS = 2048  # that a program looks through at once
BYTES = 2**28  # for keys of a group of queries
# By whether the chip is Hopper's size (similarity_lse_shapes.py) and bytes an element. A tile is
# smaller than there, since each of its entries becomes a key of 64 bits.
TILES = {
    ("hopper", 2): Tiles(64, 64, 8, 3, step=128),
    ("hopper", 4): Tiles(64, 64, 8, 3, step=32),
    ("blackwell", 2): Tiles(64, 64, 8, 3, step=128),
    ("blackwell", 4): Tiles(64, 64, 8, 3, step=32),
    ("small", 2): Tiles(64, 64, 8, 2, step=64),
    ("small", 4): Tiles(64, 32, 8, 2, step=32),
}

LAST: tl.constexpr = tl.constexpr(2**31 - 1)  # column
NO_KEY: tl.constexpr = tl.constexpr(-1)


@triton.jit
def _key(similarity, column):
    """A positive int64, larger where the similarity is, then where the column is smaller; NaN is
    larger than any number."""
    similarity = tl.where(similarity == 0, 0.0, similarity)  # one zero only
    bits = similarity.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LAST)
    ordered = tl.where(similarity == similarity, ordered, LAST).to(tl.int64) + 2**31
    return (ordered << 31) | (column ^ LAST).to(tl.int64)


@triton.jit
def _similarity(key):
    ordered = ((key >> 31) - 2**31).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & LAST)).to(tl.float32, bitcast=True)


@triton.jit
def _column(key):
    return (key & LAST) ^ LAST


@triton.jit
def _kth(keys, held, k):
    """The least of the k largest of each row's ``held`` keys [ROWS, SLOTS], or a number between it
    and the next smaller one, and how many keys reach it: k, or all where they are fewer."""
    least = tl.zeros_like(held).to(tl.int64)
    bit = tl.full([], 2**62, tl.int64)
    while (bit > 0) & (tl.max(held) > k):
        reach = tl.sum((keys >= (least + bit)[:, None]).to(tl.int32), 1)  # [ROWS]
        least = tl.where(reach >= k, least + bit, least)
        held = tl.where(reach >= k, reach, held)
        bit = bit >> 1
    return least, held


@triton.jit
def _trim(
    keys_ptr,  # [BLOCK_M, ROOM]
    counts_ptr,  # [BLOCK_M] how many keys a row has
    thresholds_ptr,  # [BLOCK_M] f32: the k-th largest similarity, NaN where there are fewer
    k,
    BLOCK_M: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Drop all but the k largest keys of each row, some rows at a time."""
    slots = tl.arange(0, ROOM)
    for first in range(0, BLOCK_M, ROWS):
        rows = first + tl.arange(0, ROWS)
        counts = tl.load(counts_ptr + rows)
        place = keys_ptr + rows[:, None] * ROOM
        keys = tl.load(place + slots[None, :], mask=slots[None, :] < counts[:, None], other=NO_KEY)
        least, held = _kth(keys, counts, k)
        kept = keys >= least[:, None]
        tl.debug_barrier()  # all threads have read what now moves
        tl.store(place + tl.cumsum(kept.to(tl.int32), 1) - 1, keys, mask=kept)
        smallest = _similarity(tl.min(tl.where(kept, keys, 2**63 - 1), 1))
        tl.store(thresholds_ptr + rows, tl.where(counts < k, float("nan"), smallest))
        tl.store(counts_ptr + rows, held)


@triton.jit
def _similarity_topk_fwd_kernel(
    x_ptr,  # [M, D] queries
    y_ptr,  # [K, D] bank
    x_norm_ptr,  # [M] f32 inverse norms, or None
    y_norm_ptr,  # [K] f32, or None
    keys_ptr,  # [segments, blocks · BLOCK_M, ROOM]
    counts_ptr,  # [segments, blocks · BLOCK_M]
    thresholds_ptr,  # [segments, blocks · BLOCK_M] f32
    M,
    K,
    run,
    k,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The k largest keys, in no order, of a block of queries with a segment of the bank."""
    block = tl.program_id(0)
    segment = tl.program_id(1)
    local_m = tl.arange(0, BLOCK_M)
    local_n = tl.arange(0, BLOCK_N)
    row_first = block * BLOCK_M
    rows = row_first + local_m
    begin = segment * run
    end = tl.minimum(begin + run, tl.cdiv(K, BLOCK_N))
    place = (tl.cast(segment, tl.int64) * tl.num_programs(0) + block) * BLOCK_M
    keys_ptr += place * ROOM  # this program's, from here on
    counts_ptr += place
    thresholds_ptr += place

    if x_norm_ptr is not None:
        x_norm = tl.load(x_norm_ptr + rows, mask=rows < M, other=0.0)  # [BM]
    if BLOCK_D >= D:
        features = tl.arange(0, BLOCK_D)
        x = load_rows(x_ptr, row_first, local_m, features, M, D, BLOCK_D)  # [BM, BD]
    threshold = tl.full([BLOCK_M], float("nan"), tl.float32)
    counts = tl.zeros([BLOCK_M], tl.int32)
    for column_block in range(begin, end):
        column_first = column_block * BLOCK_N
        columns = column_first + local_n
        if BLOCK_D >= D:
            y = load_rows(y_ptr, column_first, local_n, features, K, D, BLOCK_D)  # [BN, BD]
            s = dot(x, y.T, tl.zeros([BLOCK_M, BLOCK_N], tl.float32), PRECISION, INTERPRETED)
        else:
            s = products_by_chunks(
                x_ptr, row_first, local_m, M, y_ptr, column_first, local_n, K,
                D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, INTERPRETED,
            )  # fmt: skip
        if x_norm_ptr is not None:
            y_norm = tl.load(y_norm_ptr + columns, mask=columns < K, other=0.0)  # [BN]
            s = s * (x_norm[:, None] * y_norm[None, :])
        # Not <=: NaN is above all, and all is above NaN.
        above = (rows < M)[:, None] & (columns < K)[None, :] & ~(s <= threshold[:, None])
        more = tl.sum(above.to(tl.int32), 1)  # [BM]
        if tl.max(more) > 0:
            slots = counts[:, None] + tl.cumsum(above.to(tl.int32), 1) - 1
            keys = _key(s, columns[None, :])
            tl.store(keys_ptr + local_m[:, None] * ROOM + slots, keys, mask=above)
            counts += more
            if tl.max(counts) > ROOM - BLOCK_N:
                tl.store(counts_ptr + local_m, counts)
                tl.debug_barrier()  # other threads read what these have put aside
                _trim(keys_ptr, counts_ptr, thresholds_ptr, k, BLOCK_M, ROOM, ROWS)
                tl.debug_barrier()
                counts = tl.load(counts_ptr + local_m)
                threshold = tl.load(thresholds_ptr + local_m)
    tl.store(counts_ptr + local_m, counts)
    tl.debug_barrier()
    _trim(keys_ptr, counts_ptr, thresholds_ptr, k, BLOCK_M, ROOM, ROWS)


@triton.jit
def _similarity_topk_fwd_finish_kernel(
    keys_ptr,  # [segments, rows, ROOM]
    counts_ptr,  # [segments, rows]
    values_ptr,  # [M, k] f32
    indices_ptr,  # [M, k] i64
    stored,  # rows
    segments,
    k,
    SEGMENTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Join a query's segments, and order what is left by counting how many keys are larger."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SEGMENTS * WIDTH)
    segment, lane = slots // WIDTH, slots % WIDTH
    places = segment.to(tl.int64) * stored + row
    counts = tl.load(counts_ptr + places, mask=segment < segments, other=0)
    keys = tl.load(keys_ptr + places * ROOM + lane, mask=lane < counts, other=NO_KEY)[None, :]
    held = tl.sum((keys >= 0).to(tl.int32), 1)  # [1]
    kept = keys >= _kth(keys, held, k)[0][:, None]
    keys_ptr += row * ROOM
    tl.debug_barrier()  # all threads have read what now moves
    tl.store(keys_ptr + tl.cumsum(kept.to(tl.int32), 1) - 1, keys, mask=kept)
    tl.debug_barrier()  # other threads read what these have moved

    lanes = tl.arange(0, WIDTH)
    keys = tl.load(keys_ptr + lanes, mask=lanes < k, other=NO_KEY)  # [WIDTH]
    rank = tl.zeros([WIDTH], tl.int32)
    for first in range(0, k, CHUNK):
        others = first + tl.arange(0, CHUNK)
        others = tl.load(keys_ptr + others, mask=others < k, other=NO_KEY)
        rank += tl.sum((others[None, :] > keys[:, None]).to(tl.int32), 1)
    out = row * k + rank
    tl.store(values_ptr + out, _similarity(keys), mask=lanes < k)
    tl.store(indices_ptr + out, _column(keys), mask=lanes < k)


def launch_similarity_topk_fwd(
    queries: Tensor,  # [Q, D]
    bank: Tensor,  # [K, D]
    k: int,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Values [Q, k] float32 and indices [Q, k] int64."""
    if k > MOST:
        raise ValueError(f"k must be at most {MOST} on CUDA, not {k}")
    with torch.cuda.device_of(queries):
        plan = _plan(queries)
        tiles = TILES[plan.device.family, plan.width]
        queries, bank = queries.contiguous(), bank.contiguous()
        x_norm = y_norm = None
        if normalize:
            x_norm, y_norm = (x.new_empty(len(x), dtype=torch.float32) for x in (queries, bank))
            facts = ((x, norm, *[None] * 4) for x, norm in ((queries, x_norm), (bank, y_norm)))
            _find_facts(plan, *facts, scale=None, base2=None, factor=1.0, normalize=True)
        values = queries.new_empty(len(queries), k, dtype=torch.float32)
        indices = queries.new_empty(len(queries), k, dtype=torch.int64)
        # Very many queries: a group of them at a time through one buffer.
        room = next_power_of_2(k + max(k, tiles.block_n))
        group = max(1, BYTES // (8 * room) // tiles.block_m) * tiles.block_m
        for first in range(0, len(queries), group):
            own = slice(first, first + group)
            sides = (queries[own], bank, None if x_norm is None else x_norm[own], y_norm)
            _fwd(plan, tiles, *sides, values[own], indices[own], room, group)
    return values, indices


def _fwd(plan, tiles, queries, bank, x_norm, y_norm, values, indices, room, group):
    m, k = values.shape
    blocks, steps = cdiv(m, tiles.block_m), cdiv(len(bank), tiles.block_n)
    stored = blocks * tiles.block_m
    width = max(16, next_power_of_2(k))
    most = max(1, min(KEYS // width, group // stored))
    # A segment begins by putting everything aside, some steps' worth of trimming.
    run, pieces = plan.cut(tiles, blocks, steps, most, cost=8.0)
    keys = indices.new_empty(pieces, stored, room)
    counts = keys.new_empty(pieces, stored, dtype=torch.int32)
    thresholds = values.new_empty(pieces, stored)
    _launch(
        _similarity_topk_fwd_kernel,
        (blocks, pieces),
        *(queries, bank, x_norm, y_norm, keys, counts, thresholds, m, len(bank), run, k),
        D=plan.d,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=min(plan.whole_d, tiles.step),
        ROOM=room,
        ROWS=max(1, min(tiles.block_m, KEYS // room)),
        PRECISION=plan.precision,
        INTERPRETED=plan.device.interpreted,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    _launch(
        _similarity_topk_fwd_finish_kernel,
        (m,),
        *(keys, counts, values, indices, stored, pieces, k),
        SEGMENTS=next_power_of_2(pieces),
        WIDTH=width,
        ROOM=room,
        CHUNK=min(16, 2 * KEYS // width),
        num_warps=4,
    )
