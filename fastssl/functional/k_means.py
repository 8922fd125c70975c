"""Spherical k-means, and the cross entropy of its clusters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.common import (
    check_alike,
    check_companion,
    check_group_ids,
    check_temperature,
    loss_dtype,
    similarities,
)
from fastssl.ops import similarity_lse, similarity_topk


@torch.no_grad()
def spherical_k_means(
    x: Tensor,  # [N, D]
    centroids: Tensor,  # [K, D]
    iterations: int = 10,
    *,
    group: Group = None,
) -> Tensor:
    """Centroids of x by cosine similarity: Lloyd's iterations on the unit sphere.

    ``a_i = argmax_k x_i·c_k``, ``c_k ← normalise(Σ_{i: a_i = k} x_i)``, so many times; a centroid
    to which nothing is assigned stays. The matrix of similarities is not written. The assignments:
    ``similarity_topk(x, centroids, 1)``.

    Args:
        x: unit rows, shape [N, D]; float32, bfloat16 or float16.
        centroids: to begin with, shape [K, D], dtype and device of x: rows of it, say.
        iterations: how many, at least 0.
        group: a process group, or True for the default one: x are the rows of all its ranks, and
            the centroids, which must be the same on each of them, stay so.

    Returns:
        Shape [K, D], in the dtype of x; sums are taken in float32.

    Raises:
        TypeError: x and centroids are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, no rows, the ranks of a group disagree.

    Dhillon & Modha 2001, https://doi.org/10.1023/A:1007612920971
    """
    ranks = agree(group, False, _check_k_means, x=x, centroids=centroids, iterations=iterations)
    wide = torch.promote_types(x.dtype, torch.float32)
    for _ in range(iterations):
        _, assigned = similarity_topk(x, centroids, 1)  # [N, 1]
        sums = x.new_zeros(centroids.shape, dtype=wide).index_add_(0, assigned[:, 0], x.to(wide))
        sums = ranks.sum(sums)
        moved = F.normalize(sums, dim=1).to(x.dtype)
        centroids = torch.where(sums.any(dim=1, keepdim=True), moved, centroids)
    return centroids


def cluster_loss(
    z: Tensor,  # [N, D]
    centroids: Tensor,  # [K, D]
    labels: Tensor,  # [N]
    temperature: float = 0.1,
    *,
    group: Group = None,
) -> Tensor:
    """Every row is to tell its cluster's centroid from the others.

    ``−mean_i log softmax_k(cos(z_i, c_k) / temperature)`` at k = labels_i. Logits are not written.

    Args:
        z: shape [N, D]; float32, bfloat16 or float16.
        centroids: shape [K, D], dtype and device of z; one that requires grad receives it.
        labels: int64, shape [N], in [0, K); a row with −1 has no cluster and does not count.
        temperature: positive float.
        group: a process group, or True for the default one: the mean is over the rows of all ranks.

    Returns:
        A float32 scalar (float64 for float64 inputs), 0 where no row has a cluster. NaN or infinite
        embeddings give NaN.

    Raises:
        TypeError: tensors of wrong dtypes.
        ValueError: shapes or devices differ, an empty batch, a temperature that is not positive,
            the ranks of a group disagree.

    DeepCluster, Caron et al. 2018, https://arxiv.org/abs/1807.05520
    """
    ranks = agree(
        group,
        False,
        _check_loss,
        z=z,
        centroids=centroids,
        labels=labels,
        temperature=temperature,
    )
    lse, _ = similarity_lse(z, centroids, 1 / temperature, normalize=True)  # [N]
    own = centroids[labels.clamp(min=0)]  # [N, D]
    logit = similarities(z[:, None], own[:, None], normalize=True).view(-1) / temperature
    known = labels >= 0
    rows = torch.where(known, lse - logit, 0)
    return ranks.mean(rows, known).to(loss_dtype(z))


def _check_k_means(x: Tensor, centroids: Tensor, iterations: int) -> None:
    check_alike(x=x)
    _check_centroids(centroids, "x", x)
    if not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations must be an int, 0 or more, not {iterations!r}")


def _check_loss(z: Tensor, centroids: Tensor, labels: Tensor, temperature: float) -> None:
    check_alike(z=z)
    _check_centroids(centroids, "z", z)
    check_group_ids("labels", labels, [len(z)], z.device)
    check_temperature(temperature)


def _check_centroids(centroids: Tensor, name: str, rows: Tensor) -> None:
    check_companion("centroids", centroids, name, rows)
    width = rows.shape[1]
    if centroids.dim() != 2 or centroids.shape[1] != width or len(centroids) == 0:
        raise ValueError(f"centroids must have shape [K, {width}], not {list(centroids.shape)}")
