"""solo-learn's loss functions (``solo.losses``), as of version 1.0.6."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.functional import (
    barlow_twins_loss,
    dino_loss,
    info_nce,
    multi_view_nt_xent,
    negative_cosine_similarity,
    vicreg_loss,
)
from fastssl.functional.common import cosines, loss_dtype
from fastssl.ops import prototype_cross_entropy
from fastssl.prototype_losses import move_center

__all__ = [
    "DINOLoss",
    "barlow_loss_func",
    "byol_loss_func",
    "mocov2plus_loss_func",
    "nnclr_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
    "swav_loss_func",
    "vicreg_loss_func",
]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent over any number of views; see :func:`fastssl.functional.multi_view_nt_xent`.

    Args:
        z: shape [M, D], not normalised.
        indexes: shape [M]: rows with the same number are positives of one another. A row alone
            does not count, where solo-learn's loss is infinite.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each. All rows with
    one number are then on one rank: classes across ranks, which solo-learn takes, are an error.
    """
    return multi_view_nt_xent(z, indexes, temperature, group=True)


def mocov2plus_loss_func(
    query: Tensor,  # [N, D]
    key: Tensor,  # [N, D]
    queue: Tensor,  # [D, K]
    temperature: float = 0.1,
) -> Tensor:
    """InfoNCE with a queue of negatives; see :func:`fastssl.functional.info_nce`.

    Args:
        query, key: shape [N, D], normalised; row i of both belongs together.
        queue: shape [D, K], a negative in each column, normalised. Columns are copied into rows,
            unless they lie so: a queue made as ``torch.empty(K, D).T`` costs no copy.
        temperature: positive float.
    """
    key, queue = key.to(query.dtype), queue.to(query.dtype)
    return info_nce(query, key, queue.T, temperature, normalize=False)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of neighbours among the batch's predictions; see :func:`fastssl.functional.info_nce`.

    Args:
        nn: the queue's nearest neighbour of each sample of one view, shape [N, D].
        p: predictions for the other view, same shape; neither need be normalised.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each.
    """
    return info_nce(nn, p, temperature=temperature, group=True)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``2 − 2·mean cos(p, z)``, one direction of :func:`fastssl.functional.byol_loss`.

    Args:
        p: predictions, shape [N, D].
        z: targets, same shape; they receive no gradient.
        simplified: one of two ways to the same number; not looked at.
    """
    return (2 - 2 * cosines(p, z.detach()).mean()).to(loss_dtype(p))


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """``−mean cos(p, z)``, one direction of :func:`fastssl.functional.simsiam_loss`.

    Args:
        p: predictions, shape [N, D].
        z: targets, same shape; they receive no gradient.
        simplified: one of two ways to the same number; not looked at.
    """
    return negative_cosine_similarity(p, z.detach().to(p.dtype))


def barlow_loss_func(
    z1: Tensor, z2: Tensor, lamb: float = 5e-3, scale_loss: float = 0.025
) -> Tensor:
    """``scale_loss`` times :func:`fastssl.functional.barlow_twins_loss`.

    Args:
        z1, z2: features of both views, shape [N, D], N ≥ 2.
        lamb: weight of the off-diagonal terms.
        scale_loss: of the whole.

    Over the batch of all ranks where there are several, means and variances as well, which
    solo-learn takes over each rank's own rows.
    """
    return scale_loss * barlow_twins_loss(z1, z2, lamb, group=True)


def vicreg_loss_func(
    z1: Tensor,
    z2: Tensor,
    sim_loss_weight: float = 25.0,
    var_loss_weight: float = 25.0,
    cov_loss_weight: float = 1.0,
) -> Tensor:
    """VICReg's loss; see :func:`fastssl.functional.vicreg_loss`.

    Args:
        z1, z2: features of both views, shape [N, D], N ≥ 2.
        sim_loss_weight: of the invariance.
        var_loss_weight: of the *sum* of both views' hinges, which the authors' code halves.
        cov_loss_weight: of the covariance.

    Over the batch of all ranks where there are several, its mean the same on each.
    """
    weights = sim_loss_weight, 2 * var_loss_weight, cov_loss_weight
    return vicreg_loss(z1, z2, *weights, group=True)


def swav_loss_func(
    preds: list[Tensor],  # of [N, K]
    assignments: list[Tensor],  # of [N, K]
    temperature: float = 0.1,
) -> Tensor:
    """Swapped prediction of given assignments; see :func:`fastssl.functional.swav_loss`, which
    finds them itself and does without their matrices.

    Args:
        preds: scores of each view with the prototypes, before temperature, shape [N, K].
        assignments: of each view, shape [N, K], rows that sum to 1, as Sinkhorn's do; they receive
            no gradient.
        temperature: positive float.
    """
    wide = torch.promote_types(preds[0].dtype, torch.float32)  # for the digits of logarithms
    views = [a.detach().to(wide).log() for a in assignments]
    rows = prototype_cross_entropy(
        [p.to(wide) for p in preds], views, None, range(len(views)), temperature, 1.0
    )
    return (rows.mean() / (len(views) * (len(preds) - 1))).to(wide)


class DINOLoss(nn.Module):
    """Self-distillation: ``DINOLoss(...)(student_output, teacher_output)``.

    See :func:`fastssl.functional.dino_loss`. The centre moves at every call, towards the mean of
    the teacher's rows on all ranks.

    Args:
        num_prototypes: K.
        warmup_teacher_temp: the teacher's temperature in the first epoch.
        teacher_temp: the teacher's temperature.
        warmup_teacher_temp_epochs: over which the one becomes the other.
        num_epochs: of the training.
        student_temp: the student's temperature.
        num_large_crops: views, the same for student and teacher.
        center_momentum: in [0, 1].

    Attributes:
        epoch: of the training, from 0; to be set by the caller.
        center: [1, K].
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: float,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = 2,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.epoch = 0
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.num_large_crops = num_large_crops
        warmup = int(warmup_teacher_temp_epochs)
        self.teacher_temp_schedule = [
            *torch.linspace(warmup_teacher_temp, teacher_temp, warmup, dtype=torch.double).tolist(),
            *[teacher_temp] * (num_epochs - warmup),
        ]
        self.register_buffer("center", torch.zeros(1, num_prototypes))

    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """The mean loss, a float32 scalar; logits of all views one behind the other, [V·N, K]."""
        views = self.num_large_crops
        loss = dino_loss(
            student_output.unflatten(0, (views, -1)),
            teacher_output.unflatten(0, (views, -1)),
            self.center.flatten().clone(),  # it moves before the backward
            student_temperature=self.student_temp,
            teacher_temperature=self.teacher_temp_schedule[self.epoch],
        )
        move_center(self.center, [teacher_output], self.center_momentum, group=True)
        return loss
