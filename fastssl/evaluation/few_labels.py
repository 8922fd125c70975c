"""Accuracy when only a few images of each class carry a label: where pre-training should pay."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.errors import UserError
from fastssl.evaluation.linear import linear_accuracy


def draw_labels(labels: Tensor, per_class: int, *, seed: int) -> Tensor:
    """Choose ``per_class`` rows of every class at random, without replacement.

    Args:
        labels: int64 [N], the training labels.
        per_class: rows of each class that occurs.
        seed: the same seed gives the same rows on every machine.

    Returns:
        int64 [C · per_class], indices into ``labels``, class after class.

    Raises:
        ValueError: a class has fewer rows than ``per_class``, or per_class < 1.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise ValueError(f"class {label} has {len(members)} rows, {per_class} were asked for")
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen)


def draw_share(labels: Tensor, share: float, *, seed: int) -> Tensor:
    """Choose the same share of every class at random, without replacement.

    Args:
        labels: int64 [N], the training labels.
        share: above 0, at most 1; of N_c rows of a class, ``round(share · N_c)`` are chosen.
        seed: the same seed gives the same rows on every machine.

    Returns:
        int64, indices into ``labels``, class after class.

    Raises:
        UserError: a share outside (0, 1], or so small that a class would have no row.
    """
    if not 0 < share <= 1:
        raise UserError(f"a share of the labels must be above 0 and at most 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        count = round(share * len(members))
        if count == 0:
            raise UserError(
                f"too few labels: {share:.3g} of the {len(members)} rows of class {label} is none"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen)


def few_label_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    per_class: int,
    seed: int,
) -> float:
    """Logistic regression on one draw of ``per_class`` labels a class.

    Args:
        features: floating [N, D].
        labels: int64 [N]; the draw comes from these alone.
        test_features: floating [Q, D].
        test_labels: int64 [Q], used for the accuracy only.
        per_class: labels a class.
        seed: of the draw: the same rows for every kind of features.

    Returns:
        Accuracy, 0 to 1. Single draws differ by several points: average over many.

    Raises:
        ValueError: a class has too few rows.
    """
    rows = draw_labels(labels, per_class, seed=seed)
    return linear_accuracy(features[rows], labels[rows], test_features, test_labels)
