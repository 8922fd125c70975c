"""A student learns a teacher's soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.distributed import LOCAL
from fastssl.functional.common import (
    Reduction,
    check_floating,
    check_temperature,
    inverse_temperature,
    loss_dtype,
    reduce,
)


def distillation_loss(
    student_logits: Tensor,  # [N, C]
    teacher_logits: Tensor,  # [N, C]
    temperature: float | Tensor = 1.0,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of a student with its teacher's soft labels, without any other label.

    ``loss_i = −Σ_y P_t(y|x_i) log P_s(y|x_i)``, ``P(y|x) = softmax(logits / temperature)_y`` of the
    teacher and of the student. Its least value, where both agree, is the entropy of P_t.

    Args:
        student_logits: shape [N, C]; float32, bfloat16, float16 or float64.
        teacher_logits: shape [N, C], on the same device, of any of these dtypes; it is a target and
            gets no gradient.
        temperature: positive float, or a 0-dim tensor, for both; in the paper 0.1 where the student
            is built as the teacher is, 1 where it is smaller.
        reduction: "mean" over rows, "sum", or "none" for shape [N].

    Returns:
        float32, computed in it (float64 for float64 student logits). A class of which the teacher
        is certain that it is not, P_t = 0, adds nothing, also where the student is as certain.

    Raises:
        TypeError: logits are not floating-point.
        ValueError: other shapes or devices, no row or class, a temperature that is not positive, an
            unknown reduction.

    SimCLR v2, Chen et al. 2020, https://arxiv.org/abs/2006.10029, equation 2
    """
    check_floating(student_logits=student_logits, teacher_logits=teacher_logits)
    shapes = list(student_logits.shape), list(teacher_logits.shape)
    if len(shapes[0]) != 2 or 0 in shapes[0] or shapes[0] != shapes[1]:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [N, C] with N, C >= 1, "
            f"not {shapes[0]} and {shapes[1]}"
        )
    if student_logits.device != teacher_logits.device:
        raise ValueError(
            "student_logits and teacher_logits must be on one device, "
            f"not {student_logits.device} and {teacher_logits.device}"
        )
    check_temperature(temperature)
    dtype, scale = loss_dtype(student_logits), inverse_temperature(temperature)
    target = torch.softmax(teacher_logits.detach().to(dtype) * scale, dim=1)
    log_p = torch.log_softmax(student_logits.to(dtype) * scale, dim=1)
    terms = torch.where(target == 0, 0, target * log_p)  # a NaN stays visible
    return reduce(-terms.sum(1), reduction, ranks=LOCAL)
