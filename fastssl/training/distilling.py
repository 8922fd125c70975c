"""Distillation from a run: its encoder, fine-tuned, teaches a student."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastssl.data import mix
from fastssl.errors import UserError
from fastssl.evaluation import DISTILLING, Fitting, accuracy, distill, fine_tune
from fastssl.evaluation.fitting import classifier
from fastssl.nn import build_encoder
from fastssl.training.build import WEIGHTS
from fastssl.training.checkpoint import load_checkpoint, save_checkpoint
from fastssl.training.ranks import choose_device
from fastssl.training.run import Run, load_run, sample

STUDENT = "student.pt"
TEACHING = Fitting()  # how the teacher learns, and the student that has labels alone


def distill_run(
    run: Run,
    device: torch.device | str,
    *,
    encoder: str | None = None,
    share: float = 0.1,
    temperature: float = 1.0,
    crop_area: float | None = None,
    fitting: Fitting = DISTILLING,
    progress: bool = True,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Fine-tune a run's encoder on some labels; let it teach a student on all images without them.

    Args:
        run: what ``load_run`` gives.
        device: where its encoders are.
        encoder: the student's, by name, with fresh weights; None: self-distillation, from the run's
            own encoder as it was pre-trained.
        share: of each class's labels that the teacher learns from.
        temperature: of teacher and student.
        crop_area: the least area of the crops that both learn from, share of the image's; None: as
            in pre-training.
        fitting: how the student is trained; the teacher is fine-tuned by ``Fitting()``.
        progress: show progress bars on stderr.

    Returns:
        The student's classifier, and ``{"results": {name: {"accuracy": …, "parameters": …}},
        "setup": {…}}`` of test accuracies, 0 to 1, ready for JSON: the teacher, the student
        distilled, and, where its encoder is another, the student fine-tuned on the labels alone.

    Raises:
        UserError: there are no labels or too few, no such encoder, a loss that is not finite.
    """
    train, test = run.data.train, run.data.test
    if test is None or train.labels is None:
        raise UserError(f"{run.config.data}: a teacher needs labels of training and test images")
    seed = run.config.seed
    given: dict[str, Any] = {
        "transform": run.recipe.normalize,
        "augment": run.recipe.gentle(crop_area),
        "device": device,
        "seed": seed,
        "progress": progress,
    }
    if not temperature > 0:
        raise UserError(f"temperature must be positive, got {temperature}")
    test_images, test_labels = sample(test)

    def judged(model: nn.Module) -> dict[str, Any]:
        score = accuracy(
            model, test_images, test_labels, transform=run.recipe.normalize, device=device
        )
        return {"accuracy": score, "parameters": sum(p.numel() for p in model.parameters())}

    student = run.encoder
    if encoder is not None:
        torch.manual_seed(mix(seed, WEIGHTS))
        student = build_encoder(encoder, train.shape[0]).to(device)
    teacher = fine_tune(run.encoder, train, train.labels, TEACHING, share=share, **given)
    results = {"teacher": judged(teacher)}
    if encoder is not None:
        alone = fine_tune(student, train, train.labels, TEACHING, share=share, **given)
        results["student, labels alone"] = judged(alone)
    model = distill(teacher, student, train, fitting, temperature=temperature, **given)
    results["student, distilled"] = judged(model)
    setup = {
        "encoder": encoder or run.config.encoder,
        "label share": share,
        "temperature": temperature,
        "train images": len(train),
        "test images": len(test_images),
        "fitting": dataclasses.asdict(fitting),
        "seed": seed,
    }
    return model, {"results": results, "setup": setup}


def save_student(model: nn.Sequential, encoder: str | None, run: Run, path: Path | str) -> Path:
    """Write a student into the directory of the run that taught it; the file's path."""
    state = {"encoder": encoder, "head_layers": run.head_layers, "model": model.state_dict()}
    save_checkpoint(state, Path(path) / STUDENT)
    return Path(path) / STUDENT


def load_student(path: Path | str, *, device: str = "auto") -> nn.Sequential:
    """Read back the student that a run taught.

    Args:
        path: the run's directory.
        device: where the student is put.

    Returns:
        The classifier, in evaluation mode, from normalised images (``load_run(path).recipe``) to
        logits [B, C].

    Raises:
        UserError: there is no run or no student in it, or its checkpoint is broken.
    """
    state, chosen = load_checkpoint(Path(path) / STUDENT), choose_device(device)
    try:
        run = load_run(path, device=device, head_layers=state["head_layers"])
        encoder, shape = run.encoder, run.data.train.shape
        if state["encoder"] is not None:
            encoder = build_encoder(state["encoder"], shape[0]).to(chosen)
        classes = len(state["model"]["linear.bias"])
        model = classifier(encoder, classes, torch.zeros(1, *shape, device=chosen))
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path}: {STUDENT} is not of this run's student") from error
    return model.eval()
