"""The whole judgement of one encoder: kNN, linear probe, few labels, each beside its baselines."""

from __future__ import annotations

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
KNN_NEIGHBOURS = 20
KNN_TEMPERATURE = 0.07


def evaluate_encoder(
    encoder: nn.Module,
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    untrained: nn.Module,
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
        untrained: the same architecture with its initial weights, on ``device``.
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
        ``"trained"``, ``"untrained"``, ``"raw pixels"``; accuracies 0 to 1, std over the draws
        (0 where there is one fit). Ready for JSON.

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

    start = time.perf_counter()
    splits = (train_images, test_images)
    with _Bar("features", 2 * (len(train_images) + len(test_images)), progress) as advance:
        features = {"raw pixels": [raw_pixels(images) for images in splits]}
        for name, module in (("trained", encoder), ("untrained", untrained)):
            features[name] = [
                extract_features(
                    module,
                    images,
                    transform=transform,
                    batch_size=batch_size,
                    device=device,
                    advance=advance,
                )
                for images in splits
            ]

    results: dict[str, dict[str, dict[str, float]]] = {}
    fits = len(settings) * draws + 1
    with _Bar("probes", len(COLUMNS) * fits, progress) as advance:
        for column in COLUMNS:
            rows = _probe(
                features[column], train_labels, test_labels, settings, draws, seed, advance
            )
            for row, mean, std in rows:
                results.setdefault(row, {})[column] = {"mean": mean, "std": std}
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
            "feature dimensions": {name: features[name][0].shape[1] for name in COLUMNS},
            "left_out": left_out,
            "seconds": round(time.perf_counter() - start, 1),
        },
    }


def _probe(
    features: Sequence[Tensor],
    train_labels: Tensor,
    test_labels: Tensor,
    settings: Sequence[int],
    draws: int,
    seed: int,
    advance: Callable[[int], object],
) -> Iterator[tuple[str, float, float]]:
    """Row, mean and standard deviation of every judgement of one kind of features."""
    train, test = features
    split = (train, train_labels, test, test_labels)
    yield "kNN", knn_accuracy(*split, k=KNN_NEIGHBOURS, temperature=KNN_TEMPERATURE), 0.0
    for k in settings:
        row = f"{k} label{'s' if k > 1 else ''} a class"
        yield row, *few_label_accuracy(*split, per_class=k, draws=draws, seed=seed, advance=advance)
    yield "linear probe, all labels", linear_accuracy(*split), 0.0
    advance(1)


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
