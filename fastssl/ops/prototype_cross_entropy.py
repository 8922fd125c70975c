"""``prototype_cross_entropy``: streamed cross entropy between assignments to prototypes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastssl import reference as references


def prototype_cross_entropy(
    student: Sequence[Tensor] | Tensor,  # S of [N, K]
    teacher: Sequence[Tensor] | Tensor,  # T of [N, K]
    center: Tensor | None = None,  # [K] or [T, K]
    own: Sequence[int] = (-1,),  # T
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
) -> Tensor:
    """Each row's cross entropies between the teacher's views and the student's crops."""
    return references.prototype_cross_entropy(
        list(student), list(teacher), center, own, student_temperature, teacher_temperature
    )
