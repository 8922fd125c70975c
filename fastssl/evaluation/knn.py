"""Weighted nearest-neighbour classification, the usual first judge of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.ops import similarity_topk


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> Tensor:
    """Vote of the k most similar training rows, each weighted by exp(cosine / temperature).

        score_c(x) = Σ_{i in top-k} exp(cos(x, t_i) / T) · [y_i = c]

    Args:
        train_features: floating [N, D]; need not be normalised.
        train_labels: int64 [N], each in 0 … C − 1.
        features: floating [Q, D].
        k: neighbours, at most N of them are used; among equals those that come first.
        temperature: T; 0.07 as in DINO and instance discrimination, 0.1 on CIFAR by custom.
        chunk_size: queries at a time, which bounds the memory of the votes, [chunk_size, C].

    Returns:
        int64 [Q], on the device of ``features``; among equal scores the smallest class.

    Raises:
        ValueError: shapes that do not match, k < 1, or a temperature that is not positive.

    Similarities and votes are float32; the [Q, N] matrix is never written. Paper: Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018
    (arXiv:1805.01978), section 3.4.
    """
    if train_features.ndim != 2 or features.ndim != 2 or len(train_features) == 0:
        raise ValueError(
            f"features must be [N, D] and [Q, D] with N >= 1, got {list(train_features.shape)} "
            f"and {list(features.shape)}"
        )
    if train_features.shape[1] != features.shape[1]:
        raise ValueError(f"D differs: {train_features.shape[1]} and {features.shape[1]}")
    if train_labels.shape != train_features.shape[:1]:
        raise ValueError(
            f"{len(train_features)} rows need as many labels, got {list(train_labels.shape)}"
        )
    if k < 1 or temperature <= 0:
        raise ValueError(f"k >= 1 and temperature > 0 are needed, got {k} and {temperature}")
    if len(features) == 0:
        return train_labels.new_empty(0)
    bank = train_features.float()
    classes = int(train_labels.max()) + 1
    predictions = []
    for queries in features.float().split(chunk_size):
        similarity, index = similarity_topk(queries, bank, min(k, len(bank)), normalize=True)
        # The largest weight of a row becomes 1: the same vote, and no temperature overflows.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(queries), classes)
        predictions.append(votes.scatter_add_(1, train_labels[index], weight).argmax(1))
    return torch.cat(predictions)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """The share of ``features`` (int64 ``labels``, [Q]) that `knn_predict` gets right, 0 to 1."""
    predicted = knn_predict(train_features, train_labels, features, k=k, temperature=temperature)
    return (predicted == labels).float().mean().item()
