"""The whole judgement of one encoder: kNN, linear probe, few labels, each beside its baselines."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.evaluation.features import extract_features, raw_pixels
from fastssl.evaluation.few_labels import few_label_accuracy
from fastssl.evaluation.knn import knn_accuracy
from fastssl.evaluation.linear import INVERSE_PENALTY, linear_accuracy

COLUMNS = ("trained", "untrained", "raw pixels")
Features = tuple[Tensor, Tensor]  # of the training and of the test images, [N, D] and [Q, D]
KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07


def evaluate_encoder(
    encoder: nn.Module,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    untrained: nn.Module | Sequence[nn.Module],
    transform: Callable[[Tensor], Tensor] | None = None,
    labels_per_class: Sequence[int] = (1, 5, 10, 50),
    draws: int = 20,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge frozen features of a trained encoder beside an untrained one and raw pixels.

    Labels are drawn from the training split only; test labels serve for the accuracies alone.
    The three kinds of features meet the same probes on the same draws: weighted kNN by cosine, and
    logistic regression on rows of unit length.

    Args:
        encoder: the trained encoder, on ``device``; maps float [B, C, H', W'] to [B, D].
        train_images: uint8 [N, C, H, W] (read as k/255) or floating in [0, 1].
        train_labels: int64 [N].
        test_images: as ``train_images``, [Q, C, H, W].
        test_labels: int64 [Q].
        untrained: the same architecture with initial weights, on ``device``; or several of
            different seeds, over which the draws are spread: one small network can be luckier than
            another by several points.
        transform: maps a float32 batch in [0, 1] to the encoders' input (resizing,
            normalisation); None: nothing. Raw pixels do not go through it.
        labels_per_class: the few-label settings; one that some class is too small for is left out
            and named in ``setup.left_out``.
        draws: label draws a setting.
        batch_size: images a forward.
        device: where the encoders are.
        seed: of the label draws.
        progress: show a progress bar on stderr.

    Returns:
        ``{"results": {row: {column: {"mean": …, "std": …}}}, "setup": {…}}``. Rows are ``"kNN"``,
        ``"1 label a class"``, ``"5 labels a class"``, …, ``"linear probe, all labels"``; columns
        ``"trained"``, ``"untrained"``, ``"raw pixels"``; accuracies 0 to 1, std over draws
        and initialisations (0 where there is one fit). Ready for JSON.

    Raises:
        ValueError: images and labels that do not match, labels that are not int64, fewer than two
            classes, or features that are not finite.
    """
    _check_labels("train", train_images, train_labels)
    _check_labels("test", test_images, test_labels)
    train_labels, test_labels = train_labels.cpu(), test_labels.cpu()
    counts = train_labels.bincount()
    smallest = int(counts[counts > 0].min())
    if int((counts > 0).sum()) < 2:
        raise ValueError("at least two classes are needed to judge features")
    settings = [k for k in labels_per_class if k <= smallest]
    left_out = [k for k in labels_per_class if k > smallest]

    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    start = time.perf_counter()
    initial = [untrained] if isinstance(untrained, nn.Module) else list(untrained)
    total = (1 + len(initial)) * (len(train_images) + len(test_images))
    with _Bar("features", total, progress) as advance:

        def through(module: nn.Module) -> Features:
            def extract(images: Tensor) -> Tensor:
                return extract_features(
                    module,
                    images,
                    transform=transform,
                    batch_size=batch_size,
                    device=device,
                    advance=advance,
                )

            return extract(train_images), extract(test_images)

        features = {
            "trained": [through(encoder)],
            "untrained": [through(module) for module in initial],
            "raw pixels": [(raw_pixels(train_images), raw_pixels(test_images))],
        }

    results: dict[str, dict[str, dict[str, float]]] = {}
    total = sum(len(settings) * draws + len(variants) for variants in features.values())
    with _Bar("probes", total, progress) as advance:
        for column, variants in features.items():
            rows = _probe(variants, train_labels, test_labels, settings, draws, seed, advance)
            for row, accuracies in rows:
                results.setdefault(row, {})[column] = _summary(accuracies)
    return {
        "results": results,
        "setup": {
            "train images": len(train_images),
            "test images": len(test_images),
            "classes": int((counts > 0).sum()),
            "draws": draws,
            "seed": seed,
            "knn neighbours": KNN_NEIGHBOURS,
            "knn temperature": KNN_TEMPERATURE,
            "logistic regression C": INVERSE_PENALTY,
            "untrained initialisations": len(initial),
            "feature dimensions": {name: part[0][0].shape[1] for name, part in features.items()},
            "left_out": left_out,
            "seconds": round(time.perf_counter() - start, 1),
        },
    }


def _probe(
    variants: Sequence[Features],
    train_labels: Tensor,
    test_labels: Tensor,
    settings: Sequence[int],
    draws: int,
    seed: int,
    advance: Callable[[int], object],
) -> Iterator[tuple[str, list[float]]]:
    """Every row with its accuracies, for one kind of features; draw i judges variant i mod n."""
    splits = [(train, train_labels, test, test_labels) for train, test in variants]
    yield (
        "kNN",
        [knn_accuracy(*split, k=KNN_NEIGHBOURS, temperature=KNN_TEMPERATURE) for split in splits],
    )
    for k in settings:
        accuracies = []
        for i in range(draws):
            split = splits[i % len(splits)]
            accuracies.append(few_label_accuracy(*split, per_class=k, seed=seed + i))
            advance(1)
        yield f"{k} label{'s' if k > 1 else ''} a class", accuracies
    accuracies = []
    for split in splits:
        accuracies.append(linear_accuracy(*split))
        advance(1)
    yield "linear probe, all labels", accuracies


def _summary(accuracies: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(accuracies), "std": statistics.pstdev(accuracies)}


def _check_labels(split: str, images: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split} labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}"
        )


class _Bar:
    """A progress bar as a context manager that yields ``advance(n)``; silent where not wanted."""

    def __init__(self, title: str, total: int, shown: bool) -> None:
        from tqdm import tqdm

        interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file wants few lines
        self.bar = tqdm(
            total=total, desc=title, disable=not shown, leave=False, mininterval=interval
        )

    def __enter__(self) -> Callable[[int], object]:
        return self.bar.update

    def __exit__(self, *_: object) -> None:
        self.bar.close()
