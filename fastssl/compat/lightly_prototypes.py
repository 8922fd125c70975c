"""The losses over prototypes of ``lightly.loss``, and KoLeo, as of lightly 1.6."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastssl.functional import dino_loss, ibot_patch_loss, koleo_loss, swav_loss
from fastssl.prototype_losses import move_center


class SwaVLoss(nn.Module):
    """Swapped prediction: ``SwaVLoss()(high_resolution_outputs, low_resolution_outputs)``.

    See :func:`fastssl.functional.swav_loss`; scores of any width stay finite, where lightly's
    overflow.

    Args:
        temperature: positive float.
        sinkhorn_iterations: at least 1.
        sinkhorn_epsilon: positive float.
        sinkhorn_gather_distributed: codes, and the mean, over the batch of all ranks (lightly's
            mean is over a rank's own rows: another number, the same step).
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def forward(
        self,
        high_resolution_outputs: list[Tensor],
        low_resolution_outputs: list[Tensor],
        queue_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """The mean loss, float32, shape [1]; scores of each crop [N, K], of its queue [L, K]."""
        loss = swav_loss(
            [*high_resolution_outputs, *low_resolution_outputs],
            assign=range(len(high_resolution_outputs)),
            queue_scores=queue_outputs,
            temperature=self.temperature,
            epsilon=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            group=self.sinkhorn_gather_distributed,
        )
        return loss.reshape(1)


class DINOLoss(nn.Module):
    """Self-distillation: ``DINOLoss(65536)(teacher_out, student_out)``.

    See :func:`fastssl.functional.dino_loss`. The centre moves at every call, towards the mean of
    the teacher's rows on all ranks.

    Args:
        output_dim: K.
        warmup_teacher_temp: the teacher's temperature in the first epoch.
        teacher_temp: the teacher's temperature.
        warmup_teacher_temp_epochs: over which the one becomes the other, where ``forward`` is told
            the epoch.
        student_temp: the student's temperature.
        center_momentum: in [0, 1].
        center_mode: "mean".

    Raises:
        ValueError: another center_mode.
    """

    center: Tensor

    def __init__(
        self,
        output_dim: int = 65536,
        warmup_teacher_temp: float = 0.04,
        teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 30,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
        center_mode: str = "mean",
    ) -> None:
        super().__init__()
        _check_mode(center_mode)
        self.teacher_temp = teacher_temp
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.warmup_teacher_temp_epochs = warmup_teacher_temp_epochs
        self.teacher_temp_schedule = torch.linspace(
            warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs
        )
        self.register_buffer("center", torch.zeros(1, 1, output_dim))

    def forward(
        self,
        teacher_out: list[Tensor],
        student_out: list[Tensor],
        teacher_temp: float | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """The mean loss, a float32 scalar; logits of each view [N, K], the teacher's views the
        student's first; teacher_temp, or else the epoch, sets the teacher's temperature."""
        if teacher_temp is None:
            teacher_temp = self.teacher_temp
            if epoch is not None and epoch < self.warmup_teacher_temp_epochs:
                teacher_temp = float(self.teacher_temp_schedule[epoch])
        loss = dino_loss(
            student_out,
            teacher_out,
            self.center.flatten().clone(),  # it moves before the backward
            student_temperature=self.student_temp,
            teacher_temperature=float(teacher_temp),
        )
        move_center(self.center, teacher_out, self.center_momentum, group=True)
        return loss

    def update_center(self, teacher_out: Tensor) -> None:
        """Move the centre by these logits [V, N, K] of all ranks."""
        move_center(self.center, list(teacher_out), self.center_momentum, group=True)


class Center(nn.Module):
    """The centre of :class:`IBOTPatchLoss`, a buffer ``center`` [1, K]."""

    center: Tensor

    def __init__(self, size: Sequence[int], mode: str = "mean", momentum: float = 0.9) -> None:
        super().__init__()
        _check_mode(mode)
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(tuple(size)))

    @property
    def value(self) -> Tensor:
        """The centre."""
        return self.center

    def update(self, x: Tensor) -> None:
        """Move it by these rows [N, K] of all ranks."""
        move_center(self.center, [x], self.momentum, group=True)


class IBOTPatchLoss(nn.Module):
    """Masked patches: ``IBOTPatchLoss(65536)(teacher_out, student_out, mask)``.

    See :func:`fastssl.functional.ibot_patch_loss`. The centre moves at every call.

    Args:
        output_dim: K.
        teacher_temp, student_temp: temperatures.
        center_mode: "mean".
        center_momentum: in [0, 1].

    Raises:
        ValueError: another center_mode.
    """

    def __init__(
        self,
        output_dim: int = 65536,
        teacher_temp: float = 0.04,
        student_temp: float = 0.1,
        center_mode: str = "mean",
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.teacher_temp = teacher_temp
        self.student_temp = student_temp
        self.center = Center((1, output_dim), center_mode, center_momentum)

    def forward(
        self,
        teacher_out: Tensor,
        student_out: Tensor,
        mask: Tensor,
        teacher_temp: float | None = None,
    ) -> Tensor:
        """A float32 scalar; logits of the masked patches [M, K], in the order of ``mask``, booleans
        of shape [B, H, W]."""
        images = torch.arange(len(mask), device=mask.device).view(-1, 1, 1).expand(mask.shape)
        loss = ibot_patch_loss(
            student_out,
            teacher_out,
            self.center.value.flatten().clone(),  # it moves before the backward
            images=images[mask],
            num_images=len(mask),
            student_temperature=self.student_temp,
            teacher_temperature=self.teacher_temp if teacher_temp is None else float(teacher_temp),
        )
        self.center.update(teacher_out)
        return loss


class KoLeoLoss(nn.Module):
    """Spread of features: ``KoLeoLoss()(x)``; see :func:`fastssl.functional.koleo_loss`.

    Args:
        p: 2; lightly's other norms are not here.
        eps: positive float.

    Raises:
        ValueError: another p.
    """

    def __init__(self, p: float = 2, eps: float = 1e-8) -> None:
        super().__init__()
        if p != 2:
            raise ValueError(f"p must be 2, not {p}")
        self.p, self.eps = p, eps

    def forward(self, x: Tensor) -> Tensor:
        """The mean loss of x [N, D], not normalised; a float32 scalar."""
        return koleo_loss(x, self.eps)


def _check_mode(mode: str) -> None:
    if mode != "mean":
        raise ValueError(f"center_mode must be 'mean', not {mode!r}")
