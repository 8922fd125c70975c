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
    def forward(ctx, *inputs):
        with torch.autocast(inputs[0].device.type, enabled=False):
            return _PrototypeLinear._forward(ctx, *inputs)

    @staticmethod
    def _forward(ctx, student, student_prototypes, teacher, teacher_prototypes, center, options,
                 learning, backend):  # fmt: skip
        forward, backward = raw_pair(backend, student.dtype)
        crops, samples, _ = student.shape
        d_student = torch.empty_like(student, memory_format=torch.contiguous_format)
        d_prototypes = None
        if learning and ctx.needs_input_grad[1]:
            wide = torch.promote_types(student.dtype, torch.float32)  # parts add up in float32
            d_prototypes = torch.zeros_like(student_prototypes, dtype=wide)
        total = 0.0
        logits = (crops + len(teacher)) * len(student_prototypes)
        step = max(1, BLOCK.get(student.device.type, BLOCK["cuda"]) // logits)
        for first in range(0, samples, step):
            some = slice(first, first + step)
            features = student[:, some].flatten(0, 1)  # [S·n, D]
            crop_logits = (features @ student_prototypes.T).chunk(crops)
            views = teacher[:, some].flatten(0, 1) @ teacher_prototypes.T
            view_logits = views.chunk(len(teacher))
            loss, stats = forward(crop_logits, view_logits, center, *options)
            total = total + loss.sum()
            if learning:
                ones = torch.ones_like(loss)
                d_logits = backward(ones, stats, crop_logits, view_logits, center, *options)
                d_logits = d_logits.flatten(0, 1)  # [S·n, K]
                d_student[:, some] = (d_logits @ student_prototypes).unflatten(0, (crops, -1))
                if d_prototypes is not None:
                    products = d_logits.T, features
                    if d_prototypes.dtype == student.dtype:
                        d_prototypes.addmm_(*products)
                    else:
                        d_prototypes += products[0] @ products[1]
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
