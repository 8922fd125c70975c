"""The whole judgement of one encoder: each task beside its baselines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.data import Images
from fastssl.errors import UserError, choose
from fastssl.evaluation.features import extract_features, raw_pixels
from fastssl.evaluation.few_labels import draw_share
from fastssl.evaluation.fine_tuning import fine_tune
from fastssl.evaluation.fitting import Augment, Fitting, Transform, accuracy
from fastssl.evaluation.linear import INVERSE_PENALTY
from fastssl.evaluation.progress import Bar
from fastssl.evaluation.tasks import (
    KNN_NEIGHBOURS,
    KNN_TEMPERATURE,
    QUICK_TASKS,
    TASKS,
    WITHOUT_LABELS,
    Cells,
    measure,
    probe_jobs,
    rank_job,
    tuning_jobs,
)

COLUMNS = ("trained", "untrained", "raw pixels")


def evaluate_encoder(
    encoder: nn.Module,
    train_images: Tensor,
    train_labels: Tensor | None,
    test_images: Tensor | None,
    test_labels: Tensor | None,
    *,
    untrained: nn.Module | Sequence[nn.Module],
    tasks: Sequence[str] = QUICK_TASKS,
    transform: Transform | None = None,
    labels_per_class: Sequence[int] = (1, 5, 10, 50),
    draws: int = 20,
    label_shares: Sequence[float] = (0.01, 0.1),
    fine_tunings: int = 3,
    fitting: Fitting = Fitting(),  # noqa: B008, it is frozen
    tuning_data: tuple[Tensor | Images, Tensor] | None = None,
    augment: Augment | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge a trained encoder beside an untrained one and raw pixels.

    Labels to learn from come from the training split only; test labels serve for the scores alone.
    The three kinds of frozen features meet the same probes on the same draws. Tasks:

    - ``"knn"``: weighted kNN by cosine; ``"few-labels"``, ``"linear"``: logistic regression on rows
      of unit length, with a few labels a class and with all;
    - ``"clustering"``: k-means of the training features, as many clusters as classes, scored on the
      test images; ``"rankme"``: RankMe of the training features, the one task without labels;
    - ``"fine-tuning"``, ``"semi-supervised"``: encoder and linear layer learn, from all labels and
      from a share of each class's; the untrained column is then training from scratch. They take
      long, and are done only where asked for.

    Args:
        encoder: the trained encoder, on ``device``; maps float [B, C, H', W'] to [B, D].
        train_images: uint8 [N, C, H, W] (read as k/255) or floating in [0, 1].
        train_labels: int64 [N]; None, as the two that follow, where no task needs labels.
        test_images: as ``train_images``, [Q, C, H, W].
        test_labels: int64 [Q].
        untrained: the same architecture with initial weights, on ``device``; or several of
            different seeds, over which the draws are spread: one small network can be luckier than
            another by several points.
        tasks: which of those above.
        transform: maps a float32 batch in [0, 1] to the encoders' input (resizing,
            normalisation); None: nothing. Raw pixels do not go through it.
        labels_per_class: the few-label settings; one that some class is too small for is left out
            and named in ``setup.left_out``.
        draws: label draws a few-label setting.
        label_shares: the semi-supervised settings, shares of each class's labels.
        fine_tunings: runs a semi-supervised setting, each with its own draw.
        fitting: how to fine-tune.
        tuning_data: images and labels to fine-tune on, where ``train_images`` is a sample of more.
        augment: random views for fine-tuning; see :func:`fine_tune`.
        batch_size: images a forward.
        device: where the encoders are.
        seed: of the draws, of k-means and of fine-tuning.
        progress: show progress bars on stderr.

    Returns:
        ``{"results": {row: {column: {"mean": …, "std": …}}}, "setup": {…}}``. Rows are ``"kNN"``,
        ``"1 label a class"``, ``"5 labels a class"``, …, ``"linear probe, all labels"``,
        ``"k-means, accuracy"``, ``"k-means, NMI"``, ``"k-means, ARI"``,
        ``"RankMe, dimensions"``, ``"fine-tuning, all labels"``, ``"fine-tuning, 1% of labels"``,
        …; columns ``"trained"``, ``"untrained"`` and, of frozen features, ``"raw pixels"``; values
        0 to 1 (ARI: −1 to 1; RankMe: 0 to D), std over draws and initialisations (0 where there is
        one fit). Ready for JSON.

    Raises:
        UserError: an unknown task, no labels for one that needs them, fewer than two classes, a
            share of the labels that leaves a class without any.
        ValueError: images and labels that do not match, labels that are not int64, or features that
            are not finite.
    """
    for task in tasks:
        if task not in TASKS:
            raise choose("task", task, list(TASKS))
    for name, number in (("draws", draws), ("fine_tunings", fine_tunings)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    start = time.perf_counter()
    initial = [untrained] if isinstance(untrained, nn.Module) else list(untrained)
    encoders = {"trained": [encoder], "untrained": initial}
    through: dict[str, Any] = {"transform": transform, "batch_size": batch_size, "device": device}
    setup: dict[str, Any] = {"tasks": list(tasks), "train images": len(train_images), "seed": seed}
    setup["untrained initialisations"] = len(initial)
    splits, probes, tunings = [train_images], [], []
    needy = [task for task in tasks if task not in WITHOUT_LABELS]
    if needy:
        if train_labels is None or test_images is None or test_labels is None:
            raise UserError(f"{', '.join(needy)}: labels of training and test images are needed")
        _check_labels("train", train_images, train_labels)
        _check_labels("test", test_images, test_labels)
        y, test_y = train_labels.cpu(), test_labels.cpu()
        sizes = [count for count in y.bincount().tolist() if count]
        if len(sizes) < 2:
            raise UserError("at least two classes are needed to judge features, there is one")
        settings = [k for k in labels_per_class if k <= min(sizes)]
        probes = probe_jobs(tasks, y, test_y, settings, draws)
        splits.append(test_images)
        tuning_images, tuning_labels = tuning_data or (train_images, y)

        def tuned_accuracy(module: nn.Module, share: float, seed: int) -> float:
            model = fine_tune(
                module,
                tuning_images,
                tuning_labels,
                fitting,
                share=share,
                transform=transform,
                augment=augment,
                device=device,
                seed=seed,
                progress=progress,
            )
            return accuracy(model, splits[1], test_y, **through)

        tunings = tuning_jobs(tasks, tuned_accuracy, label_shares, fine_tunings)
        if "semi-supervised" in tasks:
            for share in label_shares:  # refused now rather than after the other tasks
                draw_share(tuning_labels, share, seed=seed)
        setup |= {
            "test images": len(test_images),
            "classes": len(sizes),
            "draws": draws,
            "knn neighbours": KNN_NEIGHBOURS,
            "knn temperature": KNN_TEMPERATURE,
            "logistic regression C": INVERSE_PENALTY,
            "left_out": [k for k in labels_per_class if k not in settings],
        }
    if "rankme" in tasks:
        probes.append(rank_job())

    cells: Cells = {}
    if probes:
        total = (1 + len(initial)) * sum(len(images) for images in splits)
        with Bar("features", total, progress) as advance:
            features = {
                column: [
                    [extract_features(m, images, advance=advance, **through) for images in splits]
                    for m in modules
                ]
                for column, modules in encoders.items()
            }
        features["raw pixels"] = [[raw_pixels(images) for images in splits]]
        setup["feature dimensions"] = {column: of[0][0].shape[1] for column, of in features.items()}
        measure(features, probes, cells, seed=seed, title="probes", progress=progress)

    if tunings:
        setup |= {"fine-tunings": fine_tunings, "fitting": dataclasses.asdict(fitting)}
        measure(encoders, tunings, cells, seed=seed, title="fine-tunings", progress=progress)
    setup["seconds"] = round(time.perf_counter() - start, 1)
    return {"results": cells, "setup": setup}


def _check_labels(split: str, images: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split} labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}"
        )
