"""``prototype_cross_entropy`` on CUDA (and, under Triton's interpreter, CPU) tensors.

Forward: each program takes a run of one sample's prototypes, of all its crops and views, and keeps
largest logits and sums relative to them; a second pass joins the runs. Backward: one pass, each
program a block of prototypes. Nothing here waits for the device, and every result is bitwise
repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl_kernels.similarity_lse_plan import _device, _launch
from fastssl_kernels.similarity_lse_shapes import cdiv, next_power_of_2

TILE = 4096  # logits of the student that a program holds
WAVES = 8  # programs for each processor that the forward is cut into
LOG2_E = math.log2(math.e)


@triton.jit
def _centred(logits, center_ptr, low_ptr, columns, mask):
    """Logits less their centre, in two floats whose sum is the exact difference."""
    high, rest = logits, tl.zeros_like(logits)
    if center_ptr is not None:
        center = tl.load(center_ptr + columns, mask=mask, other=0.0)
        high = logits - center
        part = high - logits
        rest = (logits - (high - part)) - (center + part)
    if low_ptr is not None:
        rest -= tl.load(low_ptr + columns, mask=mask, other=0.0)
    return high, rest


@triton.jit
def _prototype_cross_entropy_fwd_kernel(
    student_ptr,  # [S, N, K]
    teacher_ptr,  # [T, N, K]
    center_ptr,  # [1 or T, K] f32, or None
    low_ptr,  # the same: what float32 left of the centre, or None
    student_sums_ptr,  # [runs, N, 2, BLOCK_S] f32: largest logit, sum of powers
    teacher_sums_ptr,  # [runs, N, 2, BLOCK_T] f32
    crossing_ptr,  # [runs, N, BLOCK_S, BLOCK_T] f32: Σ power of the teacher · gap of the student
    N,
    K,
    run,  # blocks of prototypes
    center_step,
    student_scale2,
    teacher_scale2,
    S: tl.constexpr,
    T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0)
    piece = tl.program_id(1)
    crops = tl.arange(0, BLOCK_S)
    views = tl.arange(0, BLOCK_T)
    rows = (crops.to(tl.int64) * N + n) * K
    student_high = tl.full([BLOCK_S], float("-inf"), tl.float32)
    student_sum = tl.zeros([BLOCK_S], tl.float32)
    teacher_high = tl.full([BLOCK_T], float("-inf"), tl.float32)
    teacher_sum = tl.zeros([BLOCK_T], tl.float32)
    crossing = tl.zeros([BLOCK_S, BLOCK_T], tl.float32)
    for block in range(piece * run, tl.minimum((piece + 1) * run, tl.cdiv(K, BLOCK_K))):
        columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = columns < K
        mask = (crops < S)[:, None] & inside[None, :]
        s = tl.load(
            student_ptr + rows[:, None] + columns[None, :], mask=mask, other=float("-inf")
        ).to(tl.float32)  # [BS, BK]
        high = tl.maximum(student_high, tl.max(s, 1))
        rise = tl.where(student_high == float("-inf"), 0.0, high - student_high)
        gap = tl.where(mask, high[:, None] - s, 0.0)
        power = tl.where(mask, tl.exp2(gap * -student_scale2), 0.0)
        student_sum = student_sum * tl.exp2(rise * -student_scale2) + tl.sum(power, 1)
        student_high = high
        crossing += rise[:, None] * teacher_sum[None, :]
        for t in tl.static_range(T):
            this = views == t
            place = teacher_ptr + (tl.cast(t, tl.int64) * N + n) * K
            logits = tl.load(place + columns, mask=inside, other=float("-inf")).to(tl.float32)
            at = columns + t * center_step
            logits, rest = _centred(logits, center_ptr, low_ptr, at, inside)  # [BK]
            before = tl.max(tl.where(this, teacher_high, float("-inf")), 0)
            top = tl.maximum(before, tl.max(tl.where(inside, logits, float("-inf")), 0))
            origin = tl.where(top == float("-inf"), 0.0, top)
            power = tl.exp2(((logits - origin) + rest) * teacher_scale2)
            power = tl.where(inside, power, 0.0)
            fall = tl.where(before == float("-inf"), 0.0, tl.exp2((before - top) * teacher_scale2))
            met = crossing * fall + tl.sum(gap * power[None, :], 1)[:, None]
            crossing = tl.where(this[None, :], met, crossing)
            teacher_sum = tl.where(this, teacher_sum * fall + tl.sum(power, 0), teacher_sum)
            teacher_high = tl.where(this, top, teacher_high)
    place = tl.cast(piece, tl.int64) * N + n
    student_sums_ptr += place * 2 * BLOCK_S
    teacher_sums_ptr += place * 2 * BLOCK_T
    tl.store(student_sums_ptr + crops, student_high)
    tl.store(student_sums_ptr + BLOCK_S + crops, student_sum)
    tl.store(teacher_sums_ptr + views, teacher_high)
    tl.store(teacher_sums_ptr + BLOCK_T + views, teacher_sum)
    pairs = crops[:, None] * BLOCK_T + views[None, :]
    tl.store(crossing_ptr + place * BLOCK_S * BLOCK_T + pairs, crossing)


@triton.jit
def _prototype_cross_entropy_fwd_finish_kernel(
    student_sums_ptr,  # [runs, N, 2, BLOCK_S] f32
    teacher_sums_ptr,  # [runs, N, 2, BLOCK_T] f32
    crossing_ptr,  # [runs, N, BLOCK_S, BLOCK_T] f32
    loss_ptr,  # [N] f64
    stats_ptr,  # [S + T, N, 2] f64
    N,
    runs,
    student_scale: tl.float64,
    teacher_scale: tl.float64,
    S: tl.constexpr,
    T: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    n = tl.program_id(0)
    crops = tl.arange(0, BLOCK_S)
    views = tl.arange(0, BLOCK_T)
    pairs = crops[:, None] * BLOCK_T + views[None, :]
    student_high = tl.full([BLOCK_S], float("-inf"), tl.float32)
    teacher_high = tl.full([BLOCK_T], float("-inf"), tl.float32)
    for piece in range(runs):
        place = tl.cast(piece, tl.int64) * N + n
        high = tl.load(student_sums_ptr + place * 2 * BLOCK_S + crops)
        student_high = tl.maximum(student_high, high)
        high = tl.load(teacher_sums_ptr + place * 2 * BLOCK_T + views)
        teacher_high = tl.maximum(teacher_high, high)
    student_sum = tl.zeros([BLOCK_S], tl.float64)
    teacher_sum = tl.zeros([BLOCK_T], tl.float64)
    crossing = tl.zeros([BLOCK_S, BLOCK_T], tl.float64)
    for piece in range(runs):
        place = tl.cast(piece, tl.int64) * N + n
        high = tl.load(student_sums_ptr + place * 2 * BLOCK_S + crops)
        rise = tl.where(crops < S, student_high - high, 0.0).to(tl.float64)
        part = tl.load(student_sums_ptr + place * 2 * BLOCK_S + BLOCK_S + crops).to(tl.float64)
        student_sum += part * tl.exp(-rise * student_scale)
        high = tl.load(teacher_sums_ptr + place * 2 * BLOCK_T + views)
        fall = tl.where(views < T, high - teacher_high, 0.0).to(tl.float64)
        fall = tl.exp(fall * teacher_scale)
        part = tl.load(teacher_sums_ptr + place * 2 * BLOCK_T + BLOCK_T + views).to(tl.float64)
        teacher_sum += part * fall
        met = tl.load(crossing_ptr + place * BLOCK_S * BLOCK_T + pairs).to(tl.float64)
        crossing += (met + rise[:, None] * part[None, :]) * fall[None, :]
    meets = (crops < S)[:, None] & (views < T)[None, :]
    for t in tl.static_range(T):
        meets = meets & ((crops != ((OWN >> (12 * t)) & 4095))[:, None] | (views != t)[None, :])
    terms = tl.log(student_sum)[:, None] + student_scale * crossing / teacher_sum[None, :]
    terms = tl.where(meets, terms, 0.0)
    tl.store(loss_ptr + n, tl.sum(tl.sum(terms, 1), 0))
    place = stats_ptr + (crops.to(tl.int64) * N + n) * 2
    tl.store(place, student_high.to(tl.float64), mask=crops < S)
    tl.store(place + 1, student_sum, mask=crops < S)
    place = stats_ptr + ((S + views).to(tl.int64) * N + n) * 2
    tl.store(place, teacher_high.to(tl.float64), mask=views < T)
    tl.store(place + 1, teacher_sum, mask=views < T)


@triton.jit
def _prototype_cross_entropy_bwd_kernel(
    d_loss_ptr,  # [N] f64
    stats_ptr,  # [S + T, N, 2] f64
    student_ptr,  # [S, N, K]
    teacher_ptr,  # [T, N, K]
    center_ptr,  # [1 or T, K] f32, or None
    low_ptr,  # the same, or None
    d_student_ptr,  # [S, N, K]
    N,
    K,
    center_step,
    student_scale2,
    teacher_scale2,
    student_scale: tl.float64,
    S: tl.constexpr,
    T: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``d/ds_k = (met · p_k − Σ_t q_tk) · d_loss / τ_s``."""
    n = tl.program_id(1)
    crops = tl.arange(0, BLOCK_S)
    columns = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = columns < K
    mask = (crops < S)[:, None] & inside[None, :]
    places = (crops.to(tl.int64) * N + n)[:, None] * K + columns[None, :]
    upstream = tl.load(d_loss_ptr + n) * student_scale
    met = tl.zeros([BLOCK_S], tl.float64)
    for t in tl.static_range(T):
        met += tl.where(crops != ((OWN >> (12 * t)) & 4095), 1.0, 0.0)
    stats = stats_ptr + (crops.to(tl.int64) * N + n) * 2
    high = tl.load(stats, mask=crops < S, other=0.0).to(tl.float32)
    total = tl.load(stats + 1, mask=crops < S, other=1.0)
    factor = (upstream * met / total).to(tl.float32)
    s = tl.load(student_ptr + places, mask=mask, other=0.0).to(tl.float32)
    gradient = tl.exp2((s - high[:, None]) * student_scale2) * factor[:, None]  # [BS, BK]
    for t in tl.static_range(T):
        row = tl.cast(t, tl.int64) * N + n
        stats = stats_ptr + (tl.cast(S, tl.int64) * N + row) * 2
        factor = (upstream / tl.load(stats + 1)).to(tl.float32)
        logits = tl.load(teacher_ptr + row * K + columns, mask=inside, other=0.0).to(tl.float32)
        at = columns + t * center_step
        logits, rest = _centred(logits, center_ptr, low_ptr, at, inside)  # [BK]
        power = tl.exp2(((logits - tl.load(stats).to(tl.float32)) + rest) * teacher_scale2)
        target = (power * factor)[None, :]
        gradient -= tl.where((crops != ((OWN >> (12 * t)) & 4095))[:, None], target, 0.0)
    tl.store(d_student_ptr + places, gradient.to(d_student_ptr.dtype.element_ty), mask=mask)


def launch_prototype_cross_entropy_fwd(
    student: Sequence[Tensor],  # S of [N, K]
    teacher: Sequence[Tensor],  # T of [N, K]
    center: Tensor | None,  # [K] or [T, K]
    own: Sequence[int],
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:
    """Loss [N] and statistics [S + T, N, 2], float64."""
    with torch.cuda.device_of(student[0]):
        n, k = student[0].shape
        blocks = _blocks(student)
        block_s, block_t = blocks["BLOCK_S"], next_power_of_2(len(teacher))
        steps = cdiv(k, blocks["BLOCK_K"])
        runs = min(steps, cdiv(WAVES * _device(student[0]).processors, n))
        run = cdiv(steps, runs)
        runs = cdiv(steps, run)
        single = {"dtype": torch.float32}
        student_sums = student[0].new_empty(runs, n, 2, block_s, **single)
        teacher_sums = student_sums.new_empty(runs, n, 2, block_t)
        crossing = student_sums.new_empty(runs, n, block_s, block_t)
        loss = student[0].new_empty(n, dtype=torch.float64)
        stats = loss.new_empty(len(student) + len(teacher), n, 2)
        scales = (LOG2_E / student_temperature, LOG2_E / teacher_temperature)
        counts = {"S": len(student), "T": len(teacher)}
        *centers, center_step = _centers(center)
        sums = (student_sums, teacher_sums, crossing)
        _launch(
            _prototype_cross_entropy_fwd_kernel,
            (n, runs),
            *(_stacked(student), _stacked(teacher), *centers, *sums),
            *(n, k, run, center_step, *scales),
            **counts,
            **blocks,
            BLOCK_T=block_t,
            num_warps=8,
        )
        _launch(
            _prototype_cross_entropy_fwd_finish_kernel,
            (n,),
            *(*sums, loss, stats, n, runs, 1 / student_temperature, 1 / teacher_temperature),
            **counts,
            OWN=_packed(own),
            BLOCK_S=block_s,
            BLOCK_T=block_t,
            num_warps=1,
        )
    return loss, stats


def launch_prototype_cross_entropy_bwd(
    d_loss: Tensor,  # [N]
    stats: Tensor,  # [S + T, N, 2]
    student: Sequence[Tensor],  # S of [N, K]
    teacher: Sequence[Tensor],  # T of [N, K]
    center: Tensor | None,  # [K] or [T, K]
    own: Sequence[int],
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The student's gradient [S, N, K], of its dtype."""
    with torch.cuda.device_of(student[0]):
        n, k = student[0].shape
        blocks = _blocks(student)
        d_student = student[0].new_empty(len(student), n, k)
        *centers, center_step = _centers(center)
        _launch(
            _prototype_cross_entropy_bwd_kernel,
            (cdiv(k, blocks["BLOCK_K"]), n),
            *(d_loss.contiguous(), stats, _stacked(student), _stacked(teacher), *centers),
            *(d_student, n, k, center_step),
            *(LOG2_E / student_temperature, LOG2_E / teacher_temperature, 1 / student_temperature),
            S=len(student),
            T=len(teacher),
            OWN=_packed(own),
            **blocks,
            num_warps=8,
        )
    return d_student


def _blocks(student: Sequence[Tensor]) -> dict[str, int]:
    block_s = next_power_of_2(len(student))
    widest = next_power_of_2(student[0].shape[1])
    return {"BLOCK_S": block_s, "BLOCK_K": max(16, min(widest, 2048, TILE // block_s))}


def _stacked(views: Sequence[Tensor]) -> Tensor:
    """[V, N, K]: without a copy where the views lie one behind the other, as chunks of a tensor."""
    first, size = views[0], views[0].numel()
    together = all(
        v.is_contiguous()
        and v.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and v.storage_offset() == first.storage_offset() + i * size
        for i, v in enumerate(views)
    )
    if together:
        return first.as_strided((len(views), *first.shape), (size, first.shape[1], 1))
    return torch.stack(list(views))


def _centers(center: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    """The centre as float32, what that leaves, and the step from one view's to the next."""
    if center is None:
        return None, None, 0
    center = center.contiguous()
    high = center.float()
    low = (center - high).float() if center.dtype == torch.float64 else None
    return high, low, center.shape[1] if center.dim() == 2 else 0


def _packed(own: Sequence[int]) -> int:
    """The crops that views never meet, 12 bits each, 4095 for none, in one constant of a kernel."""
    return sum((o & 4095) << (12 * t) for t, o in enumerate(own))
