"""DINO: a student tells what its own slow average makes of other views."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fastssl.functional import dino_loss
from fastssl.methods.base import Method, features
from fastssl.nn import MomentumEncoder, Prototypes, cosine_momentum
from fastssl.prototype_losses import DINOLoss


class DINO(Method):
    """Emerging Properties in Self-Supervised Vision Transformers.

    ``s = C·g(f(x))`` of two large crops and any number of small ones; the teacher, f, g and C
    averaged over steps, sees the large ones; its centred and sharpened softmax is what every other
    crop is to predict. ``encoder`` is the student's; its authors judge the teacher's, which is
    ``teacher.module[0]``, and at the end of training nearly the same.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F], of any size where crops differ.
        head: g, any module from [B, F] to [B, D]; "dino" in the paper.
        dim: D, 256 in the paper.
        prototypes: K, the outputs: rows of C, which are weight-normalised.
        key_momentum: m of ``θ_teacher ← m·θ_teacher + (1 − m)·θ``; half a cosine brings it to 1.
        temperature: of the student, positive.
        teacher_temperature: positive.
        warmup_teacher_temperature: from which it moves to teacher_temperature, in equal steps;
            None: it stays.
        teacher_warmup_epochs: in how many epochs.
        center_momentum: of the mean of the teacher's outputs that is taken from them.
        freeze_epochs: how long C stays as it is, at first.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294
    """

    more_views: ClassVar[bool] = True
    in_loss: ClassVar[tuple[str, ...]] = ("prototypes",)

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 256,
        prototypes: int = 65_536,
        key_momentum: float = 0.996,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float | None = None,
        teacher_warmup_epochs: int = 30,
        center_momentum: float = 0.9,
        freeze_epochs: float = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.prototypes = Prototypes(dim, prototypes, weight_norm=True)
        self.teacher = MomentumEncoder(self.student)
        self.first_momentum = self.key_momentum = key_momentum
        self.freeze_epochs = freeze_epochs
        self.criterion = DINOLoss(
            prototypes,
            temperature,
            teacher_temperature,
            warmup_teacher_temperature,
            teacher_warmup_epochs,
            center_momentum,
        )
        self.teacher_temperature = self.criterion.temperature_at(0)

    @property
    def student(self) -> nn.Sequential:
        """C∘g∘f."""
        return nn.Sequential(self.encoder, self.head, self.prototypes)

    def before_step(self, progress: float, epoch: float) -> None:
        """m and the teacher's temperature at this step, and whether the prototypes learn."""
        self.key_momentum = cosine_momentum(self.first_momentum, progress)
        self.teacher_temperature = self.criterion.temperature_at(int(epoch))
        self.prototypes.frozen = epoch < self.freeze_epochs

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """g(f(x)) of every crop, [N, D] each, the two large ones first."""
        return self.head(features(self.encoder, views)).chunk(len(views))

    def targets(self, *views: Tensor, chunk_size: int | None = None) -> tuple[Tensor, ...]:
        """The teacher's outputs for the two large crops, [N, K] each."""
        return tuple(self.teacher(x, chunk_size) for x in views[:2])

    def loss(self, *z: Tensor) -> Tensor:
        """Cross entropy of z, [N, D] each, and the teacher's outputs, the last two, [N, K]; a
        float32 scalar."""
        return dino_loss(
            [self.prototypes(crop) for crop in z[:-2]],
            z[-2:],
            self.criterion.center,
            student_temperature=self.criterion.student_temperature,
            teacher_temperature=self.teacher_temperature,
            group=self.group,
        )

    def after_step(self, *z: Tensor) -> None:
        """The teacher follows, and the centre its outputs."""
        self.teacher.follow(self.student, self.key_momentum)
        self.criterion.group = self.group
        self.criterion.update_center(z[-2:])
