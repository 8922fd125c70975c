"""``prototype_cross_entropy``: streamed cross entropy between assignments to prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import FLOATS, check_rows
from fastssl.ops.library import define


def prototype_cross_entropy(
    student: Sequence[Tensor] | Tensor,  # S of [N, K]
    teacher: Sequence[Tensor] | Tensor,  # T of [N, K]
    center: Tensor | None = None,  # [K] or [T, K]
    own: Sequence[int] = (-1,),  # T
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Each sample's cross entropies between a teacher's views and a student's crops.

    ``loss_i = −Σ_t Σ_{s≠own_t} Σ_k q_tik log p_sik`` over prototypes k, with
    ``p_s = softmax(student_s / student_temperature)`` and
    ``q_t = softmax((teacher_t − center_t) / teacher_temperature)``. Neither p, q nor a logarithm of
    them is written: the forward reads every logit once and keeps two numbers a row, the backward
    reads them once more and writes the student's gradient.

    With ``center = ε·v`` of Sinkhorn's column potentials v, and ε the teacher's temperature, q are
    its assignments: the rows' potentials are the log-sum-exps that are found here.

    Args:
        student: logits of S crops, a sequence of tensors [N, K] or one tensor [S, N, K]; float32,
            bfloat16, float16 (float64 is served by the reference).
        teacher: logits of T views, likewise, of the same dtype and device. They receive no
            gradient; nor does the center.
        center: subtracted from the teacher's logits, shape [K], or [T, K] with one for each view;
            any floating dtype; None: zero.
        own: T ints: the crop that a view never meets, or −1.
        student_temperature: positive float.
        teacher_temperature: positive float.

    Returns:
        Shape [N], float64 (float32 on devices without it). Differences to the largest logit are
        taken first and no sum cancels, so wide logits keep their digits; exponentials and sums
        within a block are float32. −inf of a teacher without a center leaves a prototype out; any
        other NaN or infinity that takes part gives NaN or infinity.

    Raises:
        TypeError: logits are not floating-point tensors of one dtype, the center is none.
        ValueError: shapes or devices differ, no sample, no prototype, no crop or view, ``own`` of
            another length or out of range, a temperature that is not positive.
        BackendError: a backend was asked for that cannot serve these tensors.

    DINO, Caron et al. 2021, https://arxiv.org/abs/2104.14294;
    SwAV, Caron et al. 2020, https://arxiv.org/abs/2006.09882
    """
    own = list(own)
    temperatures = (float(student_temperature), float(teacher_temperature))
    crops, views = list(student), [t.detach() for t in teacher]
    _check(crops, views, center, own, *temperatures)
    center = None if center is None else center.detach()
    backend = backends.select("prototype_cross_entropy", crops[0].device.type)
    if backend == "reference" or crops[0].dtype == torch.float64:
        return references.prototype_cross_entropy(crops, views, center, own, *temperatures)
    # One tensor of all crops gets one gradient, where the views of a sequence would be joined.
    inputs = [student] if isinstance(student, Tensor) else crops
    return _PrototypeCrossEntropy.apply(
        center, own, *temperatures, backend, len(views), *views, *inputs
    )


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, center, own, student_temperature, teacher_temperature, backend, count, *views_inputs
    ):
        views, inputs = views_inputs[:count], views_inputs[count:]
        options = (own, student_temperature, teacher_temperature)
        loss, stats = backends.raw("prototype_cross_entropy_fwd", backend)(
            _crops(inputs), list(views), center, *options
        )
        ctx.save_for_backward(center, stats, *views_inputs)
        ctx.options, ctx.backend, ctx.count = options, backend, count
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        center, stats, *views_inputs = ctx.saved_tensors
        views, inputs = views_inputs[: ctx.count], views_inputs[ctx.count :]
        d_student = backends.raw("prototype_cross_entropy_bwd", ctx.backend)(
            d_loss, stats, _crops(inputs), views, center, *ctx.options
        )  # [S, N, K]
        gradients = [d_student] if inputs[0].dim() == 3 else d_student.unbind()
        return *[None] * (6 + ctx.count), *gradients


def raw_pair(backend, dtype):
    """What computes the raw forward and backward of tensors that ``backend`` serves."""
    if backend == "reference" or dtype == torch.float64:
        return _reference_fwd, _reference_bwd
    names = "prototype_cross_entropy_fwd", "prototype_cross_entropy_bwd"
    return tuple(backends.raw(name, backend) for name in names)


def _crops(inputs):
    return list(inputs[0].unbind()) if inputs[0].dim() == 3 else list(inputs)


def _check(student, teacher, center, own, student_temperature, teacher_temperature) -> None:
    for name, side in (("student", student), ("teacher", teacher)):
        if not side:
            raise ValueError(f"{name} must hold at least one tensor [N, K]")
    named = {f"student[{i}]": x for i, x in enumerate(student)}
    named |= {f"teacher[{i}]": x for i, x in enumerate(teacher)}
    check_rows(**named)
    n, k = student[0].shape
    for name, x in named.items():
        if len(x) != n:
            raise ValueError(f"{name} must have the {n} rows of student[0], not {len(x)}")
    if center is not None:
        if not isinstance(center, Tensor) or center.dtype not in FLOATS:
            got = center.dtype if isinstance(center, Tensor) else type(center).__name__
            raise TypeError(f"center must be a floating-point tensor, not {got}")
        if list(center.shape) not in ([k], [len(teacher), k]):
            raise ValueError(
                f"center must have shape [{k}] or [{len(teacher)}, {k}], not {list(center.shape)}"
            )
        if center.device != student[0].device:
            raise ValueError(
                f"center must be on the device of student[0], {student[0].device}, "
                f"not {center.device}"
            )
    if len(own) != len(teacher) or any(not -1 <= o < len(student) for o in own):
        raise ValueError(
            f"own must hold for each of {len(teacher)} views a crop from 0 to {len(student) - 1}, "
            f"or -1, not {own}"
        )
    for name, value in (
        ("student_temperature", student_temperature),
        ("teacher_temperature", teacher_temperature),
    ):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, not {value}")


def _fwd_fake(student, teacher, center, own, student_temperature, teacher_temperature):
    n = student[0].shape[0]
    return (
        student[0].new_empty(n, dtype=torch.float64),
        student[0].new_empty((len(student) + len(teacher), n, 2), dtype=torch.float64),
    )


def _bwd_fake(d_loss, stats, student, *others):
    return student[0].new_empty((len(student), *student[0].shape))


def _reference_fwd(student, teacher, center, own, student_temperature, teacher_temperature):
    temperatures = (student_temperature, teacher_temperature)
    loss = references.prototype_cross_entropy(student, teacher, center, own, *temperatures)
    stats = []
    for side, middle, temperature in zip(
        (student, teacher), (None, center), temperatures, strict=True
    ):
        logits = torch.stack(list(side)).to(loss.dtype)  # [S, N, K]
        if middle is not None:
            logits = logits - middle.to(loss.dtype).view(-1, 1, logits.shape[2])
        highest = logits.amax(dim=2)
        below = (logits - highest[:, :, None]) / temperature
        stats.append(torch.stack([highest, below.exp().sum(dim=2)], dim=2))  # [S, N, 2]
    return loss, torch.cat(stats)


def _reference_bwd(
    d_loss, stats, student, teacher, center, own, student_temperature, teacher_temperature
):
    crops = torch.stack(list(student)).requires_grad_()  # [S, N, K]
    with torch.enable_grad():
        loss = references.prototype_cross_entropy(
            crops.unbind(), teacher, center, own, student_temperature, teacher_temperature
        )
    return torch.autograd.grad(loss, crops, d_loss)[0]


_OPTIONS = "Tensor? center, int[] own, float student_temperature, float teacher_temperature"

define(
    f"prototype_cross_entropy_fwd(Tensor[] student, Tensor[] teacher, {_OPTIONS}) "
    "-> (Tensor, Tensor)",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="prototype_cross_entropy",
)
define(
    "prototype_cross_entropy_bwd(Tensor d_loss, Tensor stats, Tensor[] student, Tensor[] teacher, "
    f"{_OPTIONS}) -> Tensor",
    fake=_bwd_fake,
    reference=_reference_bwd,
    module="prototype_cross_entropy",
)
backends.register("prototype_cross_entropy", "native", "triton")
