from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from fastssl.evaluation import clustering_scores, kmeans_predict

RANDOM = np.random.default_rng(0)
PARTITIONS = {  # labels, clusters
    "the same, renamed": ([0, 0, 1, 1, 2], [2, 2, 0, 0, 1]),
    "one cluster": ([0, 0, 1, 2], [5, 5, 5, 5]),
    "each its own": ([0, 0, 1, 1], [0, 1, 2, 3]),
    "fewer clusters": ([0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1]),
    "more clusters": ([0, 0, 0, 0, 3, 3], [0, 0, 1, 1, 2, 4]),
    "greedy matching fails": ([0] * 5 + [1] * 4, [0, 0, 0, 1, 1, 0, 0, 0, 0]),
    "random": (RANDOM.integers(0, 4, 60), RANDOM.integers(0, 5, 60)),
}  # fmt: skip


def best_matching(y, c):
    """Over all one-to-one maps of clusters to classes, the smaller side padded."""
    classes, clusters = sorted(set(y)), sorted(set(c))
    size = max(len(classes), len(clusters))
    classes = [*classes, *[None] * (size - len(classes))]
    return max(
        np.mean([mapping[clusters.index(b)] == a for a, b in zip(y, c, strict=True)])
        for mapping in permutations(classes)
    )


def mutual_information(y, c):
    """2 I / (H + H) from the joint frequencies."""

    def entropy(values):
        p = np.unique(values, return_counts=True, axis=0)[1] / len(y)
        return -(p * np.log(p)).sum()

    h_y, h_c, both = entropy(y), entropy(c), entropy(np.stack([y, c], 1))
    return 2 * (h_y + h_c - both) / (h_y + h_c)


def pairs(y, c):
    """(agreeing pairs − expected) / (largest − expected)."""
    same_y = np.array([a == b for a, b in combinations(y, 2)])
    same_c = np.array([a == b for a, b in combinations(c, 2)])
    expected = same_y.sum() * same_c.sum() / len(same_y)
    return ((same_y & same_c).sum() - expected) / ((same_y.sum() + same_c.sum()) / 2 - expected)


@pytest.mark.parametrize("name", PARTITIONS)
def test_scores_are_the_formulas(name):
    y, c = PARTITIONS[name]
    scores = clustering_scores(torch.tensor(y), torch.tensor(c))
    assert scores["accuracy"] == pytest.approx(best_matching(y, c))
    assert scores["NMI"] == pytest.approx(mutual_information(y, c), abs=1e-12)
    assert scores["ARI"] == pytest.approx(pairs(y, c), abs=1e-12)


def test_kmeans_finds_blobs_whatever_their_length():
    labels = torch.arange(90) % 3
    features = torch.eye(3, 6)[labels] + 0.05 * torch.randn(90, 6)
    features = features * torch.rand(90, 1).add(0.1) * 100  # only directions count
    clusters = kmeans_predict(features[:60], features[60:], 3, seed=1)
    assert clustering_scores(labels[60:], clusters)["accuracy"] == 1.0
    assert torch.equal(clusters, kmeans_predict(features[:60], features[60:], 3, seed=1))


def test_the_path_for_many_rows(monkeypatch):
    monkeypatch.setattr("fastssl.evaluation.clustering.FULL_BATCH", 0)
    test_kmeans_finds_blobs_whatever_their_length()


def test_collapsed_features_are_one_cluster():
    clusters = kmeans_predict(torch.ones(20, 4), torch.ones(8, 4), 4)
    scores = clustering_scores(torch.arange(8) % 4, clusters)
    assert scores == {"accuracy": 0.25, "NMI": 0.0, "ARI": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans_predict(torch.ones(3, 2), torch.ones(1, 2), 4), "1 to 3"),
        (lambda: kmeans_predict(torch.ones(3, 2), torch.ones(1, 2), 0), "1 to 3"),
        (lambda: kmeans_predict(torch.ones(3, 2), torch.ones(1, 3), 1), r"\[N, D\] and \[Q, D\]"),
        (lambda: clustering_scores(torch.zeros(3), torch.zeros(2)), "both be"),
        (lambda: clustering_scores(torch.zeros(0), torch.zeros(0)), "N >= 1"),
    ],
)
def test_wrong_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
