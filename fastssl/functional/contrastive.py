"""Contrastive losses: each a formula over ``similarity_lse``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastssl.distributed import Group, Local, agree
from fastssl.functional.common import (
    Reduction,
    check_alike,
    check_companion,
    check_floating,
    check_temperature,
    inverse_temperature,
    loss_dtype,
    pair_loss,
    reduce,
    similarities,
)
from fastssl.ops import similarity_lse


def nt_xent(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """Normalised temperature-scaled cross entropy over two views of N samples.

    ``loss_i = −log( e^{s_ip} / Σ_{j≠i} e^{s_ij} )`` with ``s_ij = cos(z_i, z_j) / temperature``
    and p the other view of i, for each of the 2N rows. It is computed as
    ``softplus(log Σ_{j≠i,p} e^{s_ij} − s_ip)``, the same number, which keeps its digits (and its
    gradient's) when the positive dominates. The [2N, 2N] matrix is never written.

    Args:
        z0: embeddings of the first view, shape [N, D]; float32, bfloat16 or float16.
        z1: embeddings of the second view, same shape, dtype and device; row i of both is one
            sample.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        normalize: use cosine similarity; False: plain dot products. A zero vector is similar
            to nothing and receives no gradient.
        reduction: "mean" over the 2N rows, "sum", or "none" for shape [2N], rows of z0 first.
        group: a process group, or True for the default one: the batch is that of all its ranks, and
            "none" gives this rank's rows; see :mod:`fastssl.distributed`.
        ring: with a group, pass embeddings around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [2N]. With N = 1 there is no
        negative and the loss is 0. NaN or infinite embeddings give NaN, as does a
        non-positive temperature tensor on a device (reading it would wait for the device).

    Raises:
        TypeError: z0 and z1 are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, the batch is empty, the temperature is not
            positive, the reduction is unknown, the ranks of a group disagree.

    SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709
    """
    ranks = agree(group, ring, _check_views, z0=z0, z1=z1, temperature=temperature)
    scale = inverse_temperature(temperature)
    negatives, positive = _two_views(z0, z1, scale, normalize, ranks)
    return pair_loss(positive, negatives, reduction=reduction, ranks=ranks, like=z0)


def info_nce(
    query: Tensor,  # [N, D]
    positive_key: Tensor,  # [N, D]
    negative_keys: Tensor | None = None,  # [K, D] or [N, K, D]
    temperature: float | Tensor = 0.1,
    *,
    symmetric: bool = False,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """InfoNCE: tell each query's positive key from its negative keys.

    ``loss_i = −log( e^{s_i+} / (e^{s_i+} + Σ_k e^{s_ik}) )`` with ``s_ik = cos(query_i, key_k) /
    temperature``, for each of the N queries; computed as ``softplus(log Σ_k e^{s_ik} − s_i+)``.
    The negatives are the positive keys of the other queries (``negative_keys=None``), or a set
    shared by all queries, such as MoCo's queue, or a set for each query. Similarities to shared
    keys are never written; those that require no grad cost no gradient work: one pass over them
    gives the loss and the gradient of the query.

    Args:
        query: shape [N, D]; float32, bfloat16 or float16.
        positive_key: same shape, dtype and device; row i belongs to query i.
        negative_keys: None, shape [K, D] (shared) or [N, K, D] (row i's own), dtype and device of
            query.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        symmetric: the mean of both directions, keys among queries too, from one pass; only with
            negatives from the batch.
        normalize: use cosine similarity; False: plain dot products. A zero vector is similar
            to nothing and receives no gradient.
        reduction: "mean" over the N queries, "sum", or "none" for shape [N].
        group: a process group, or True for the default one: the batch is that of all its ranks, and
            "none" gives this rank's rows; see :mod:`fastssl.distributed`.
        ring: with a group, pass embeddings around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [N]. With N = 1 and negatives from the
        batch there is no negative and the loss is 0. NaN or infinite embeddings give NaN.

    Raises:
        TypeError: the tensors are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, the batch or the set of negatives is empty, the
            temperature is not positive, the reduction is unknown, symmetric with negative_keys, the
            ranks of a group disagree.

    CPC, van den Oord et al. 2018, https://arxiv.org/abs/1807.03748;
    MoCo, He et al. 2020, https://arxiv.org/abs/1911.05722
    """
    ranks = agree(
        group,
        ring,
        _check_queries,
        query=query,
        positive_key=positive_key,
        negative_keys=negative_keys,
        temperature=temperature,
        symmetric=symmetric,
    )
    scale = inverse_temperature(temperature)
    others: list[Tensor] = []  # the other direction's log-sum-exp
    if negative_keys is None:
        own: dict[str, Any] = {"normalize": normalize, "pair_offset": 0, "exclude_pair": True}
        if symmetric:
            negatives, positive, *others = ranks.similarity_lse_both(
                query, positive_key, scale, **own
            )
        else:
            negatives, positive = ranks.similarity_lse(query, positive_key, scale, **own)
    elif negative_keys.dim() == 2:
        negatives, positive = similarity_lse(
            query, negative_keys, scale, normalize=normalize, pairs=positive_key
        )
    else:
        queries = query[:, None]  # [N, 1, D]
        positive = scale * similarities(queries, positive_key[:, None], normalize)[:, 0, 0]
        logits = scale * similarities(queries, negative_keys, normalize)[:, 0]  # [N, K]
        negatives = logits.logsumexp(dim=1)
    return pair_loss(positive, negatives, *others, reduction=reduction, ranks=ranks, like=query)


def dcl(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    temperature: float | Tensor = 0.1,
    *,
    weights: Tensor | None = None,  # [N]
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """Decoupled contrastive learning: NT-Xent without the positive in the denominator.

    ``loss_i = −w_i · s_ip + log Σ_{j≠i,p} e^{s_ij}`` with ``s_ij = cos(z_i, z_j) / temperature``
    and p the other view of i, for each of the 2N rows. The [2N, 2N] matrix is never written.

    Args:
        z0: embeddings of the first view, shape [N, D]; float32, bfloat16 or float16.
        z1: embeddings of the second view, same shape, dtype and device; row i of both is one
            sample.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        weights: w, shape [N], for both views of each sample; None: 1.
        normalize: use cosine similarity; False: plain dot products. A zero vector is similar
            to nothing and receives no gradient.
        reduction: "mean" over the 2N rows, "sum", or "none" for shape [2N], rows of z0 first.
        group: a process group, or True for the default one: the batch is that of all its ranks, and
            "none" gives this rank's rows; see :mod:`fastssl.distributed`.
        ring: with a group, pass embeddings around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [2N]; it may be negative. With N = 1
        there is no negative and the loss is 0, where the formula has −∞. NaN or infinite
        embeddings give NaN.

    Raises:
        TypeError: z0 and z1 are not floating-point tensors of one dtype, nor weights one.
        ValueError: shapes or devices differ, the batch is empty, the temperature is not
            positive, the reduction is unknown, the ranks of a group disagree.

    DCL, Yeh et al. 2021, https://arxiv.org/abs/2110.06848
    """
    ranks = agree(group, ring, _check_views, z0=z0, z1=z1, temperature=temperature, weights=weights)
    scale = inverse_temperature(temperature)
    negatives, positive = _two_views(z0, z1, scale, normalize, ranks)
    if weights is not None:
        positive = weights.repeat(2) * positive
    loss = _decoupled(negatives, positive)  # [2N]
    return reduce(loss, reduction, ranks=ranks).to(loss_dtype(z0))


def dclw(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """Decoupled contrastive learning, positives that are far apart weighted up.

    :func:`dcl` with the negative von Mises-Fisher weights
    ``w_i = 2 − e^{c_i/σ} / mean_k e^{c_k/σ}`` of ``c_i = cos(z0_i, z1_i)``, which receive no
    gradient.

    Args:
        sigma: positive float: the smaller, the more the weights differ.

    Other arguments, results and errors as :func:`dcl`.
    """
    check_temperature(sigma, "sigma")
    ranks = agree(group, ring, _check_views, z0=z0, z1=z1, temperature=temperature)
    scale = inverse_temperature(temperature)
    negatives, positive = _two_views(z0, z1, scale, normalize, ranks)
    closeness = (positive[: len(z0)] / (scale * sigma)).detach()  # [N], c/σ
    everyones = ranks.gather(closeness)
    weights = 2 - len(everyones) * (closeness - everyones.logsumexp(0)).exp()
    loss = _decoupled(negatives, weights.repeat(2) * positive)  # [2N]
    return reduce(loss, reduction, ranks=ranks).to(loss_dtype(z0))


def _two_views(
    z0: Tensor, z1: Tensor, scale: float | Tensor, normalize: bool, ranks: Local
) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of each row's negatives and the logit of its positive, both [2N]."""
    return ranks.similarity_lse(
        torch.cat([z0, z1]),  # [2N, D]
        scale=scale,
        normalize=normalize,
        self_offset=0,
        pair_offset=z0.shape[0],
        exclude_pair=True,
    )


def _decoupled(negatives: Tensor, positive: Tensor) -> Tensor:
    """``negatives − positive``, and 0 for a row that has no negative."""
    alone = negatives == float("-inf")
    return torch.where(alone, 0.0, negatives - positive)


def _check_views(
    z0: Tensor, z1: Tensor, temperature: float | Tensor, weights: Tensor | None = None
) -> None:
    check_alike(z0=z0, z1=z1)
    check_temperature(temperature)
    if weights is None:
        return
    check_floating(weights=weights)
    if weights.shape != z0.shape[:1]:
        raise ValueError(f"weights must have shape [{len(z0)}], not {list(weights.shape)}")
    if weights.device != z0.device:
        raise ValueError(f"weights must be on the device of z0, {z0.device}, not {weights.device}")


def _check_queries(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    temperature: float | Tensor,
    symmetric: bool,
) -> None:
    check_alike(query=query, positive_key=positive_key)
    check_temperature(temperature)
    if negative_keys is None:
        return
    if symmetric:
        raise ValueError("symmetric=True takes its negatives from the batch: negative_keys=None")
    check_companion("negative_keys", negative_keys, "query", query)
    n, d = query.shape
    shape = list(negative_keys.shape)
    shared = len(shape) == 2
    paired = len(shape) == 3 and shape[0] == n
    if not (shared or paired) or shape[-1] != d:
        raise ValueError(f"negative_keys must have shape [K, {d}] or [{n}, K, {d}], not {shape}")
    if 0 in shape:
        raise ValueError(f"negative_keys must hold at least one key, not {shape}")
