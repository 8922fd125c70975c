"""Losses over prototypes, and KoLeo, as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.distributed import Group, agree
from fastssl.functional import dino_loss, ibot_patch_loss, koleo_loss, swav_loss
from fastssl.functional.prototypes import Assignment


class SwAVLoss(nn.Module):
    """Swapped prediction: ``SwAVLoss(temperature=0.1)(scores)``.

    See :func:`fastssl.functional.swav_loss` for the formula, shapes, dtypes and errors. A queue of
    features is the caller's: their scores with the present prototypes are ``queue_scores``.

    Args:
        temperature, epsilon, iterations, assign, group: as of the function.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        assign: Sequence[int] = (0, 1),
        *,
        group: Group = None,
    ) -> None:
        super().__init__()
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.assign, self.group = tuple(assign), group

    def forward(
        self, scores: Sequence[Tensor] | Tensor, queue_scores: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The mean loss; scores of V crops, [N, K] each; queue_scores of shape [L, K] for each crop
        of ``assign``."""
        return swav_loss(
            scores,
            assign=self.assign,
            queue_scores=queue_scores,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, epsilon={self.epsilon}, "
            f"iterations={self.iterations}, assign={self.assign}"
        )


@torch.no_grad()
def move_center(
    center: Tensor,  # [K], or of K elements
    views: Sequence[Tensor],  # of [N, K]
    momentum: float,
    group: Group = None,
    prototypes: Tensor | None = None,  # [K, D]
) -> None:
    """``center ← m·center + (1 − m)·mean``, in place, the mean over rows of all views and ranks;
    with ``prototypes``, of features [N, D], over what these make of them."""
    ranks = agree(group, False, lambda views: None, views=list(views))
    total = torch.stack([v.sum(dim=0, dtype=torch.float32) for v in views]).sum(dim=0)  # [K]
    rows = total.new_full((1,), sum(len(v) for v in views))
    total, rows = ranks.sum(torch.cat([total, rows])).split([len(total), 1])
    if prototypes is not None:
        total = prototypes.detach().float() @ total
    center.lerp_((total / rows).to(center.dtype).view_as(center), 1 - momentum)


class _Distillation(nn.Module):
    """What the two losses against a teacher share: its temperature over time, and its centre."""

    center: Tensor

    def __init__(
        self,
        num_prototypes: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float | None = None,
        warmup_epochs: int = 30,
        center_momentum: float = 0.9,
        assignment: Assignment = "centering",
        iterations: int = 3,
        *,
        group: Group = None,
    ) -> None:
        super().__init__()
        if num_prototypes < 1:
            raise ValueError(f"num_prototypes must be positive, not {num_prototypes}")
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"center_momentum must lie in [0, 1], not {center_momentum}")
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.warmup_teacher_temperature = warmup_teacher_temperature
        self.warmup_epochs = warmup_epochs
        self.center_momentum = center_momentum
        self.assignment, self.iterations, self.group = assignment, iterations, group
        self.register_buffer("center", torch.zeros(num_prototypes))

    def temperature_at(self, epoch: float) -> float:
        """The teacher's temperature: in the first ``warmup_epochs`` it moves in equal steps from
        ``warmup_teacher_temperature``, if there is one, to ``teacher_temperature``."""
        start, end = self.warmup_teacher_temperature, self.teacher_temperature
        if start is None or epoch >= self.warmup_epochs:
            return end
        return start + (end - start) * min(1.0, epoch / max(1, self.warmup_epochs - 1))

    def _options(self, epoch: float | None) -> dict[str, Any]:
        temperature = self.teacher_temperature
        return {
            # A copy: the loss keeps it for its backward, and the centre is about to move.
            "center": self.center.clone() if self.assignment == "centering" else None,
            "student_temperature": self.student_temperature,
            "teacher_temperature": temperature if epoch is None else self.temperature_at(epoch),
            "assignment": self.assignment,
            "iterations": self.iterations,
            "group": self.group,
        }

    @torch.no_grad()
    def update_center(
        self, teacher: Sequence[Tensor] | Tensor, prototypes: Tensor | None = None
    ) -> None:
        """Move the centre towards the mean of the teacher's rows, over all views and ranks.

        ``center ← m·center + (1 − m)·mean``; ``teacher`` as of ``forward``, of features with the
        teacher's ``prototypes``.
        """
        views = [teacher] if isinstance(teacher, Tensor) and teacher.dim() == 2 else list(teacher)
        move_center(self.center, views, self.center_momentum, self.group, prototypes)

    def extra_repr(self) -> str:
        return (
            f"{len(self.center)}, student_temperature={self.student_temperature}, "
            f"teacher_temperature={self.teacher_temperature}, assignment={self.assignment!r}"
        )


class DINOLoss(_Distillation):
    """Self-distillation: ``DINOLoss(65536)(student, teacher)``.

    See :func:`fastssl.functional.dino_loss` for the formula, shapes, dtypes and errors. After a
    loss to learn from (the student requires grad) the centre moves towards the mean of the
    teacher's logits.

    Args:
        num_prototypes: K.
        student_temperature, teacher_temperature: as of the function.
        warmup_teacher_temperature, warmup_epochs: see :meth:`temperature_at`; None: no warm-up.
        center_momentum: m, in [0, 1].
        assignment, iterations, group: as of the function; "sinkhorn" needs no centre and leaves it.

    Attributes:
        center: float32, shape [K], persistent.

    Raises:
        ValueError: num_prototypes is not positive, center_momentum not in [0, 1].
    """

    def forward(
        self,
        student: Sequence[Tensor] | Tensor,
        teacher: Sequence[Tensor] | Tensor,
        epoch: float | None = None,
        prototypes: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The mean loss; logits of S crops and T views, [N, K] each, the teacher's views first; or
        with ``prototypes`` features.

        ``epoch``, which may be a fraction, sets the teacher's temperature; None: its final one.
        """
        loss = dino_loss(student, teacher, prototypes=prototypes, **self._options(epoch))
        if self.assignment == "centering" and loss.requires_grad:
            self.update_center(teacher, None if prototypes is None else prototypes[1])
        return loss


class IBOTPatchLoss(_Distillation):
    """Self-distillation of masked patches: ``IBOTPatchLoss(8192)(student, teacher, images)``.

    See :func:`fastssl.functional.ibot_patch_loss` for the formula, shapes, dtypes and errors, and
    :class:`DINOLoss` for the centre and the arguments.
    """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        images: Tensor | None = None,
        num_images: int | None = None,
        epoch: float | None = None,
    ) -> Tensor:
        """The loss; logits of M masked patches, shape [M, K], and their images, shape [M]."""
        loss = ibot_patch_loss(
            student, teacher, images=images, num_images=num_images, **self._options(epoch)
        )
        if self.assignment == "centering" and loss.requires_grad:
            self.update_center(teacher)
        return loss


class KoLeoLoss(nn.Module):
    """Spread of features: ``KoLeoLoss()(features)``.

    See :func:`fastssl.functional.koleo_loss` for the formula, shapes, dtypes and errors.

    Args:
        eps, group: as of the function.
    """

    def __init__(self, eps: float = 1e-8, *, group: Group = None) -> None:
        super().__init__()
        self.eps, self.group = eps, group

    def forward(self, features: Tensor) -> Tensor:
        """The mean loss of features [N, D], not normalised."""
        return koleo_loss(features, self.eps, group=self.group)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
