"""``prototype_cross_entropy`` together with the layers that make its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl.ops.prototype_cross_entropy import raw_pair

BLOCK = {"cpu": 1 << 23, "cuda": 1 << 28}  # logits that are there at a time


def prototype_linear_cross_entropy(
    student: Tensor,  # [S, N, D]
    student_prototypes: Tensor,  # [K, D]
    teacher: Tensor,  # [T, N, E]
    teacher_prototypes: Tensor,  # [K, E]
    center: Tensor | None,  # [K] or [T, K]
    own: Sequence[int],  # T
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """The sum over all samples of :func:`prototype_cross_entropy` of logits that nobody keeps.

    ``student @ student_prototypes.T`` and ``teacher @ teacher_prototypes.T`` are made for a few
    samples at a time, in the dtype of the features, and their gradient with them; the forward turns
    it into that of features and prototypes at once, with the products that backward would do. So
    the graph holds these two, of the size of the inputs, and can be gone backward once.

    Returns:
        A float64 scalar (float32 on devices without it).
    """
    inputs = student, student_prototypes
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    backend = backends.select("prototype_cross_entropy", student.device.type)
    return _PrototypeLinear.apply(
        *inputs, teacher.detach(), teacher_prototypes.detach(), center,
        (list(own), student_temperature, teacher_temperature), learning, backend,
    )  # fmt: skip


class _PrototypeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, student_prototypes, teacher, teacher_prototypes, center, options,
                learning, backend):  # fmt: skip
        weights = student_prototypes, teacher_prototypes
        raw = raw_pair(backend, student.dtype)
        d_student = torch.empty_like(student, memory_format=torch.contiguous_format)
        d_prototypes = None
        if learning and ctx.needs_input_grad[1]:
            wide = torch.promote_types(student.dtype, torch.float32)  # parts add up in float32
            d_prototypes = torch.zeros_like(student_prototypes, dtype=wide)
        total = 0.0
        logits = (len(student) + len(teacher)) * len(student_prototypes)
        step = max(1, BLOCK.get(student.device.type, BLOCK["cuda"]) // logits)
        with torch.autocast(student.device.type, enabled=False):
            for first in range(0, student.shape[1], step):
                some = slice(first, first + step)
                loss, d_features = _block(
                    raw, student[:, some], teacher[:, some], weights, center, options, learning,
                    d_prototypes,
                )  # fmt: skip
                total = total + loss
                if learning:
                    d_student[:, some] = d_features
        ctx.gradients = (d_student, d_prototypes) if learning else None
        ctx.dtype = student_prototypes.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, d_total):
        if ctx.gradients is None:
            raise RuntimeError(
                "this loss has given its gradients away, which the forward computed: "
                "call it again for a second backward"
            )
        (d_student, d_prototypes), ctx.gradients = ctx.gradients, None
        d_student = d_student.mul_(d_total) if ctx.needs_input_grad[0] else None
        if d_prototypes is not None:
            d_prototypes = d_prototypes.mul_(d_total).to(ctx.dtype)
        return d_student, d_prototypes, *[None] * 6


def _block(raw, student, teacher, weights, center, options, learning, d_prototypes):
    """The loss of n samples and the gradient of their features [S, n, D]; that of the student's
    prototypes is added to ``d_prototypes``."""
    forward, backward = raw
    crops = len(student)
    features = student.flatten(0, 1)  # [S·n, D]
    logits = (features @ weights[0].T).chunk(crops)
    views = (teacher.flatten(0, 1) @ weights[1].T).chunk(len(teacher))
    loss, stats = forward(logits, views, center, *options)
    if not learning:
        return loss.sum(), None
    d_logits = backward(torch.ones_like(loss), stats, logits, views, center, *options).flatten(0, 1)
    del logits, views  # their memory, before more is asked for
    if d_prototypes is not None and d_prototypes.dtype == features.dtype:
        d_prototypes.addmm_(d_logits.T, features)  # without a product of its own size
    elif d_prototypes is not None:
        d_prototypes += d_logits.T @ features
    return loss.sum(), (d_logits @ weights[0]).unflatten(0, (crops, -1))
