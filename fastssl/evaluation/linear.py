"""Logistic regression on frozen features: the linear probe."""

from __future__ import annotations

import functools
import warnings
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

# With rows of unit length, this C was at or near the best of those tried for raw pixels and for
# trained features, on a validation part of the training digits (bench/results/digits_recipe.md).
INVERSE_PENALTY = 100.0


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

        min_w  Σ_i −log softmax(w x_i + b)_{y_i} + ‖w‖² / (2C),  x_i = f_i / ‖f_i‖

    At unit length, features of different sources meet the penalty at one scale.

    Args:
        features: f, floating [N, D].
        labels: int64 [N], at least two classes.
        test_features: floating [Q, D].
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
    # One thread: these products are so small that threads cost more than they give, and on a busy
    # machine a hundred times more.
    with warnings.catch_warnings(), one_thread():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(unit(features), labels.numpy())
    return float(probe.score(unit(test_features), test_labels.numpy()))


def one_thread() -> AbstractContextManager[Any]:
    """One thread for numpy's and scikit-learn's arithmetic."""
    return _thread_pools().limit(limits=1)


def unit(features: Tensor) -> np.ndarray:
    """Rows of unit length, float32; zero rows stay zero."""
    return F.normalize(features.float(), dim=1).cpu().numpy()


@functools.cache
def _thread_pools() -> Any:
    """Finding the pools takes longer than a fit: once is enough."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
