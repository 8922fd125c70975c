"""Clusters of frozen features against the classes: what an encoder groups without any label."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fastssl.evaluation.linear import one_thread, unit

STARTS = 10  # of k-means; the one of least inertia counts
# Products a pass beyond which mini-batches of rows serve: ten starts would take minutes.
FULL_BATCH = 500_000_000


def kmeans_predict(
    train_features: Tensor, features: Tensor, clusters: int, *, seed: int = 0
) -> Tensor:
    """The cluster of each row of ``features``, by k-means on ``train_features``.

        min_μ  Σ_i min_c ‖x_i − μ_c‖²,  x_i = f_i / ‖f_i‖;  the cluster of x is argmin_c ‖x − μ_c‖

    scikit-learn's ``KMeans`` from ten k-means++ starts, or its ``MiniBatchKMeans`` where one pass
    over the rows is more than 5·10⁸ products.

    Args:
        train_features: floating [N, D], at least as many rows as clusters.
        features: floating [Q, D].
        clusters: K, at least 1; by custom the number of classes.
        seed: of the starts; the same seed gives the same clusters.

    Returns:
        int64 [Q], 0 … K − 1. Where there are fewer than K distinct rows, some number is not used.

    Raises:
        ValueError: fewer rows than clusters, no cluster, or shapes that do not match.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    shapes = list(train_features.shape), list(features.shape)
    if train_features.ndim != 2 or features.ndim != 2 or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"features must be [N, D] and [Q, D], got {shapes[0]} and {shapes[1]}")
    if not 1 <= clusters <= len(train_features):
        raise ValueError(f"clusters must be 1 to {len(train_features)} (N), got {clusters}")
    whole = train_features.numel() * clusters <= FULL_BATCH
    kmeans = (KMeans if whole else MiniBatchKMeans)(clusters, n_init=STARTS, random_state=seed)
    with warnings.catch_warnings(), one_thread():  # one thread: sums in one order
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(unit(train_features))
        return torch.from_numpy(kmeans.predict(unit(features))).long()


def clustering_scores(labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """How well clusters agree with classes, whatever their numbers.

    Args:
        labels: int64 [N], the classes.
        clusters: int64 [N]; there may be more or fewer clusters than classes.

    Returns:
        ``"accuracy"``: the share of rows that are right under the best one-to-one matching of
        clusters to classes (Hungarian algorithm), 0 to 1. ``"NMI"``: normalised mutual information,
        ``2 I(y; c) / (H(y) + H(c))``, 0 to 1. ``"ARI"``: the adjusted Rand index, the share of
        pairs of rows that both treat alike, so scaled that chance is 0 and agreement 1.

    Raises:
        ValueError: shapes that do not match, or no row.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    if labels.ndim != 1 or labels.shape != clusters.shape or len(labels) == 0:
        raise ValueError(
            "labels and clusters must both be [N] with N >= 1, "
            f"got {list(labels.shape)} and {list(clusters.shape)}"
        )
    y, c = labels.cpu().numpy(), clusters.cpu().numpy()
    together = contingency_matrix(y, c)  # [classes, clusters]: rows of both
    matched = together[linear_sum_assignment(together, maximize=True)].sum()
    return {
        "accuracy": float(matched / len(y)),
        "NMI": float(normalized_mutual_info_score(y, c)),
        "ARI": float(adjusted_rand_score(y, c)),
    }
