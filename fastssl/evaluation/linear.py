"""Logistic regression on frozen features: the linear probe."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor

# Chosen on a validation part of the digits' training split: bench/results/digits_recipe.md.
INVERSE_PENALTY = 100.0


def prepare(train_features: Tensor, *others: Tensor) -> list[Tensor]:
    """Centre by the training rows' mean, then scale every row to unit length.

    Features of different sources (pixels, untrained, trained) come to one scale, so that one
    penalty is fair to all of them. No label is used.

    Args:
        train_features: floating [N, D], the unlabelled training features that give the mean.
        others: floating [·, D], moved by the same mean.

    Returns:
        float32 [N, D] and the others, in order.
    """
    mean = train_features.float().mean(0)
    return [F.normalize(part.float() - mean, dim=1) for part in (train_features, *others)]


def linear_accuracy(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    inverse_penalty: float = INVERSE_PENALTY,
    max_iter: int = 1000,
) -> float:
    """Fit multinomial logistic regression on labelled features; accuracy on the test features.

        min_w  Σ_i −log softmax(w x_i + b)_{y_i} + ‖w‖² / (2C)

    Args:
        features: floating [N, D], already prepared (see `prepare`).
        labels: int64 [N], at least two classes.
        test_features: floating [Q, D], prepared alike.
        test_labels: int64 [Q].
        inverse_penalty: C, scikit-learn's convention.
        max_iter: L-BFGS iterations at most; a fit that stops there is judged as it is.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        ValueError: fewer than two classes, or shapes that do not match.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=inverse_penalty, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(features.numpy(), labels.numpy())
    return float(probe.score(test_features.numpy(), test_labels.numpy()))
