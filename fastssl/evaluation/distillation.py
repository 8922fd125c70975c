"""Distillation: a student learns from a fine-tuned teacher's answers on unlabelled images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.data import Images
from fastssl.evaluation.features import evaluating
from fastssl.evaluation.fitting import (
    Augment,
    Fitting,
    Transform,
    classifier,
    example_of,
    fit,
)
from fastssl.functional import distillation_loss

DISTILLING = Fitting(epochs=100)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor | Images,
    fitting: Fitting = DISTILLING,
    *,
    temperature: float = 1.0,
    transform: Transform | None = None,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Sequential:
    """Train a copy of a student, with a linear layer, to answer as a teacher does.

        min  mean_i −T Σ_y P_teacher(y|x_i) log P_student(y|x_i),  P = softmax(logits / T)

    T, the temperature, is in front so that one learning rate serves at all of them: the gradient of
    a logit is the difference of two probabilities, as of a plain cross-entropy.

    The teacher is a classifier, such as :func:`fine_tune` gives; no labels are used here. A small
    student learns a large teacher; one built as the teacher is (self-distillation) often surpasses
    it, where the teacher saw few labels.

    Args:
        teacher: maps the encoder's input to logits [B, C]; in evaluation mode while it answers, and
            left as it was.
        student: an encoder, from the same input to [B, F] or to what flattens to it, with fresh or
            pre-trained weights. It stays as it is; all of its copy learns.
        images: uint8 [N, C, H, W] (read as k/255) or floating in [0, 1]; or
            :class:`fastssl.data.Images`, which are read batch by batch.
        fitting: epochs, rate, optimiser, and how batch norm behaves.
        temperature: of both; in the paper 0.1 for self-distillation, 1 for a smaller student.
        transform: maps a float32 batch in [0, 1] to the encoders' input; None: nothing.
        augment: in place of ``transform``: random views, which teacher and student both see.
        device: where teacher and student are.
        seed: of batches, views and dropout. On a CPU the same seed gives the same weights bit for
            bit.
        progress: show a progress bar on stderr.

    Returns:
        The student's classifier, to logits [B, C], in evaluation mode.

    Raises:
        ValueError: images of a wrong shape, a teacher that gives no logits [B, C], a temperature
            that is not positive.
        UserError: a loss that is no longer finite.

    Chen et al. 2020, https://arxiv.org/abs/2006.10029, section 2.
    """
    example = example_of(images, transform, device)
    with evaluating(teacher):
        with torch.no_grad():
            answer = teacher(example)
        if answer.ndim != 2:
            raise ValueError(f"a teacher must give logits [B, C], got {list(answer.shape)}")
        model = classifier(student, answer.shape[1], example)

        def soft_labels(logits: Tensor, x: Tensor, _: Tensor) -> Tensor:
            with torch.no_grad():
                answers = teacher(x)
            return temperature * distillation_loss(logits, answers, temperature)

        fit(
            model,
            images,
            soft_labels,
            fitting,
            transform=transform,
            augment=augment,
            device=device,
            seed=seed,
            title="distillation",
            progress=progress,
        )
    return model
