"""Losses that compare assignments to prototypes: formulas over ``prototype_cross_entropy``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.clustering import column_potentials
from fastssl.functional.common import (
    check_companion,
    check_floating,
    check_group_ids,
    check_temperature,
    group_rows,
    loss_dtype,
)
from fastssl.ops import prototype_cross_entropy, prototype_linear_cross_entropy
from fastssl.ops.sinkhorn import check as check_sinkhorn

Assignment = Literal["centering", "sinkhorn"]


def swav_loss(
    scores: Sequence[Tensor] | Tensor,  # V of [N, K]
    *,
    assign: Sequence[int] = (0, 1),
    queue_scores: Sequence[Tensor] | None = None,  # of [L, K]
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: Group = None,
) -> Tensor:
    """Swapped prediction: every crop is to predict the prototypes that another was assigned.

    ``−mean_{i∈A} mean_{v≠i} mean_n Σ_k q_ink log softmax_k(scores_v,n / temperature)``, with the
    codes q_i by Sinkhorn over the scores of crop i, without gradient. Neither codes nor softmax
    are written.

    Args:
        scores: of V crops with the prototypes, before temperature: a sequence of tensors [N, K],
            row n of all of them one sample, or one tensor [V, N, K]; float32, bfloat16 or float16.
        assign: A, the crops that codes are computed for: the large ones.
        queue_scores: for each crop of ``assign`` scores of earlier samples, shape [L, K], which
            take part in Sinkhorn only.
        temperature: positive float, of the predictions.
        epsilon: positive float, of Sinkhorn.
        iterations: of Sinkhorn, at least 1.
        group: a process group, or True for the default one: the batch (and the queue) is that of
            all its ranks; see :mod:`fastssl.distributed`.

    Returns:
        A float32 scalar (float64 for float64 inputs). NaN or infinite scores give NaN.

    Raises:
        TypeError: scores are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, an empty batch, fewer than two crops, a crop to assign
            that is not there, a queue for other crops, a temperature that is not positive, ranks of
            a group that disagree.

    SwAV, Caron et al. 2020, https://arxiv.org/abs/2006.09882
    """
    ranks = agree(
        group,
        False,
        _check_swav,
        scores=views_of(scores),
        assign=tuple(assign),
        queue_scores=queue_scores,
        temperature=temperature,
        epsilon=epsilon,
        iterations=iterations,
    )
    teachers = [views_of(scores)[i].detach() for i in assign]
    queues: Sequence[Tensor | None] = queue_scores or [None] * len(teachers)
    potentials = [
        column_potentials(
            t if q is None else torch.cat([t, q.detach()]), epsilon, iterations, ranks
        )
        for t, q in zip(teachers, queues, strict=True)
    ]
    rows = prototype_cross_entropy(
        scores, teachers, epsilon * torch.stack(potentials), assign, temperature, epsilon
    )
    pairs = len(teachers) * (len(scores) - 1)
    return ranks.mean(rows / pairs).to(loss_dtype(teachers[0]))


def dino_loss(
    student: Sequence[Tensor] | Tensor,  # S of [N, K], or [N, D]
    teacher: Sequence[Tensor] | Tensor,  # T of [N, K], or [N, E]
    center: Tensor | None = None,  # [K]
    *,
    prototypes: tuple[Tensor, Tensor] | None = None,  # [K, D] and [K, E]
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    assignment: Assignment = "centering",
    iterations: int = 3,
    group: Group = None,
) -> Tensor:
    """Self-distillation: every crop is to predict what the teacher makes of the other views.

    ``−mean_{(t,s), t≠s} mean_n Σ_k q_tnk log softmax_k(student_s,n / student_temperature)``, with
    ``q_t = softmax((teacher_t − center) / teacher_temperature)``, or by Sinkhorn over the rows of
    all the teacher's views. No softmax is written.

    Args:
        student: logits of S crops, a sequence of tensors [N, K], or one tensor [S, N, K]; the first
            T crops are the teacher's views; float32, bfloat16 or float16.
        teacher: logits of T views, as ``student``; they receive no gradient.
        center: shape [K], floating-point, subtracted from the teacher's logits; None: zero.
        prototypes: the last layers' weights, the student's [K, D] and the teacher's [K, E], of the
            features' dtype: student and teacher are then features, [N, D] and [N, E], and logits
            are made for a few samples at a time and not kept. The student's weights receive a
            gradient. Such a loss can be gone backward once.
        student_temperature: positive float.
        teacher_temperature: positive float, of Sinkhorn too.
        assignment: "centering", or "sinkhorn" (DINOv2's; without a center).
        iterations: of Sinkhorn, at least 1.
        group: a process group, or True for the default one: the batch is that of all its ranks; see
            :mod:`fastssl.distributed`.

    Returns:
        A float32 scalar (float64 for float64 inputs). NaN or infinite logits give NaN.

    Raises:
        TypeError: logits are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, an empty batch, no two different views, a temperature
            that is not positive, a center beside Sinkhorn, an unknown assignment, ranks of a group
            that disagree.

    DINO, Caron et al. 2021, https://arxiv.org/abs/2104.14294;
    DINOv2, Oquab et al. 2023, https://arxiv.org/abs/2304.07193
    """
    ranks = agree(
        group,
        False,
        _check_dino,
        student=views_of(student),
        teacher=views_of(teacher),
        center=center,
        prototypes=prototypes,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        assignment=assignment,
        iterations=iterations,
    )
    crops, views = len(student), len(teacher)
    pairs = crops * views - min(crops, views)
    own = [t if t < crops else -1 for t in range(views)]
    temperatures = student_temperature, teacher_temperature
    if assignment == "sinkhorn":
        rows = _stacked(teacher).flatten(0, 1)
        scores = rows if prototypes is None else rows.detach() @ prototypes[1].detach().T
        potentials = column_potentials(scores, teacher_temperature, iterations, ranks)  # [K]
        center = teacher_temperature * potentials
    if prototypes is None:
        loss = ranks.mean(prototype_cross_entropy(student, teacher, center, own, *temperatures))
    else:
        sides = _stacked(student), prototypes[0], _stacked(teacher), prototypes[1]
        total = prototype_linear_cross_entropy(*sides, center, own, *temperatures)
        samples = total.new_full((), len(student[0]))
        total, samples = ranks.sum(torch.stack([total, samples])).unbind()
        loss = total / samples
    return (loss / pairs).to(loss_dtype(student[0]))


def ibot_patch_loss(
    student: Tensor,  # [M, K]
    teacher: Tensor,  # [M, K]
    center: Tensor | None = None,  # [K]
    *,
    images: Tensor | None = None,  # [M]
    num_images: int | None = None,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    assignment: Assignment = "centering",
    iterations: int = 3,
    group: Group = None,
) -> Tensor:
    """Masked patches are to predict what the teacher, which sees them, makes of them.

    ``−(1/B) Σ_images mean_{m of it} Σ_k q_mk log softmax_k(student_m / student_temperature)``
    with q the teacher's as in :func:`dino_loss`: every image counts once, however many of its
    patches are masked.

    Args:
        student: logits of M masked patches, shape [M, K]; float32, bfloat16 or float16.
        teacher: of the same patches, same shape, dtype and device; they receive no gradient.
        center: shape [K], floating-point, subtracted from the teacher's logits; None: zero.
        images: integers, shape [M]: which image a patch is of, by any numbering; images of other
            ranks are others. None: the mean over patches.
        num_images: B, of this process, where images without a masked patch are to count as well,
            with a loss of zero (DINOv2); None: the images that have one.
        student_temperature, teacher_temperature, assignment, iterations, group: as of
            :func:`dino_loss`.

    Returns:
        A float32 scalar (float64 for float64 inputs). NaN or infinite logits give NaN.

    Raises:
        TypeError: logits are not floating-point tensors of one dtype, images not integers.
        ValueError: shapes or devices differ, no patch, num_images without images, a temperature
            that is not positive, a center beside Sinkhorn, an unknown assignment, ranks of a group
            that disagree.

    iBOT, Zhou et al. 2022, https://arxiv.org/abs/2111.07832;
    DINOv2, Oquab et al. 2023, https://arxiv.org/abs/2304.07193
    """
    ranks = agree(
        group,
        False,
        _check_ibot,
        student=student,
        teacher=teacher,
        center=center,
        images=images,
        counted=num_images is not None,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        assignment=assignment,
        iterations=iterations,
    )
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be positive, not {num_images}")
    if assignment == "sinkhorn":
        potentials = column_potentials(teacher, teacher_temperature, iterations, ranks)
        center = teacher_temperature * potentials
    rows = prototype_cross_entropy(
        [student], [teacher], center, [-1], student_temperature, teacher_temperature
    )
    if images is None:
        loss = ranks.mean(rows)
    else:
        weights = 1 / (group_rows(images)[1] + 1).to(rows.dtype)  # [M], 1 in all for an image
        count = weights.sum() if num_images is None else rows.new_full((), num_images)
        total, count = ranks.sum(torch.stack([rows @ weights, count])).unbind()
        loss = total / count
    return loss.to(loss_dtype(student))


def _stacked(views: Sequence[Tensor] | Tensor) -> Tensor:
    """[V, N, K], without a copy where it is one tensor."""
    return views if isinstance(views, Tensor) else torch.stack(list(views))


def views_of(logits: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """The tensors [N, K] of a sequence, or of one tensor [V, N, K]."""
    return list(logits)


def _check_swav(
    scores: list[Tensor],
    assign: tuple[int, ...],
    queue_scores: Sequence[Tensor] | None,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> None:
    _check_views("scores", scores, "scores", scores)
    if len(scores) < 2:
        raise ValueError("scores must hold at least two crops, not 1")
    if not assign or any(not 0 <= i < len(scores) for i in assign):
        raise ValueError(f"assign must name crops 0 to {len(scores) - 1}, not {assign}")
    if queue_scores is not None:
        if len(queue_scores) != len(assign):
            raise ValueError(
                f"queue_scores must hold a tensor for each of the {len(assign)} crops to assign, "
                f"not {len(queue_scores)}"
            )
        width = scores[0].shape[1]
        for i, queue in enumerate(queue_scores):
            check_companion(f"queue_scores[{i}]", queue, "scores[0]", scores[0])
            if queue.dim() != 2 or queue.shape[1] != width:
                raise ValueError(
                    f"queue_scores[{i}] must have shape [L, {width}], not {list(queue.shape)}"
                )
    _check_number("temperature", temperature)
    check_sinkhorn(scores[0], epsilon, iterations)


def _check_dino(
    student: list[Tensor],
    teacher: list[Tensor],
    center: Tensor | None,
    prototypes: tuple[Tensor, Tensor] | None,
    student_temperature: float,
    teacher_temperature: float,
    assignment: Assignment,
    iterations: int,
) -> None:
    _check_views("student", student, "student", student)
    like = student[0]
    if prototypes is None:
        _check_views("teacher", teacher, "student", student)
    else:
        _check_views("teacher", teacher, "teacher", teacher)
        check_companion("teacher[0]", teacher[0], "student[0]", like)
        _check_prototypes(prototypes, like, teacher[0])
        like = prototypes[0].detach()[:, 0].expand(1, -1)  # as logits are
    if len(student) == len(teacher) == 1:
        raise ValueError("student and teacher must hold two views between them: none meets itself")
    _check_number("student_temperature", student_temperature)
    _check_teacher(like, center, assignment, teacher_temperature, iterations)


def _check_prototypes(prototypes: tuple[Tensor, Tensor], student: Tensor, teacher: Tensor) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"teacher[0] must have the {len(student)} rows of student[0]")
    if not isinstance(prototypes, (tuple, list)) or len(prototypes) != 2:
        raise TypeError("prototypes must be two tensors, the student's [K, D] and the teacher's")
    for i, (weight, features) in enumerate(zip(prototypes, (student, teacher), strict=True)):
        check_companion(f"prototypes[{i}]", weight, "student[0]", student)
        shape = [prototypes[0].shape[0], features.shape[1]]
        if list(weight.shape) != shape or 0 in shape:
            raise ValueError(f"prototypes[{i}] must have shape {shape}, not {list(weight.shape)}")


def _check_ibot(
    student: Tensor,
    teacher: Tensor,
    center: Tensor | None,
    images: Tensor | None,
    counted: bool,
    student_temperature: float,
    teacher_temperature: float,
    assignment: Assignment,
    iterations: int,
) -> None:
    _check_views("student", [student], "student", [student])
    _check_views("teacher", [teacher], "student", [student])
    if images is not None:
        check_group_ids("images", images, [len(student)], student.device)
    elif counted:
        raise ValueError("num_images needs images, the number of each patch's image")
    _check_number("student_temperature", student_temperature)
    _check_teacher(student, center, assignment, teacher_temperature, iterations)


def _check_views(name: str, views: list[Tensor], first_name: str, firsts: list[Tensor]) -> None:
    if not views:
        raise ValueError(f"{name} must hold at least one tensor [N, K]")
    check_floating(**{f"{name}[{i}]": z for i, z in enumerate(views)})
    first = firsts[0]
    if first.dim() != 2 or 0 in first.shape:
        raise ValueError(
            f"{first_name}[0] must have shape [N, K], neither zero, not {list(first.shape)}"
        )
    for i, z in enumerate(views):
        check_companion(f"{name}[{i}]", z, f"{first_name}[0]", first)
        if z.shape != first.shape:
            raise ValueError(
                f"{name}[{i}] must have the shape of {first_name}[0], {list(first.shape)}, "
                f"not {list(z.shape)}"
            )


def _check_teacher(
    like: Tensor,
    center: Tensor | None,
    assignment: Assignment,
    temperature: float,
    iterations: int,
) -> None:
    if assignment not in ("centering", "sinkhorn"):
        raise ValueError(f'assignment must be "centering" or "sinkhorn", not {assignment!r}')
    _check_number("teacher_temperature", temperature)
    if assignment == "sinkhorn":
        check_sinkhorn(like, temperature, iterations)
    if center is None:
        return
    if assignment == "sinkhorn":
        raise ValueError('center must be None with assignment="sinkhorn", which needs none')
    check_floating(center=center)
    if list(center.shape) != [like.shape[1]]:
        raise ValueError(f"center must have shape [{like.shape[1]}], not {list(center.shape)}")
    if center.device != like.device:
        raise ValueError(
            f"center must be on the logits' device, {like.device}, not {center.device}"
        )


def _check_number(name: str, value: float) -> None:
    if isinstance(value, Tensor) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, not {type(value).__name__}")
    check_temperature(value, name)
