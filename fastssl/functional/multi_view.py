"""NT-Xent with any number of views of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.distributed import LOCAL, Group, Local, agree
from fastssl.functional.common import (
    Reduction,
    check_alike,
    check_floating,
    check_group_ids,
    check_temperature,
    group_rows,
    inverse_temperature,
    loss_dtype,
    reduce,
    similarities,
)
from fastssl.ops import similarity_lse
from fastssl.reference.similarity_lse import masked_lse

# Rows of one sample up to which all their similarities are computed at once.
FEW = 16


def multi_view_nt_xent(
    z: Tensor | Sequence[Tensor],  # [N, V, D], or V of [N, D], or [M, D] with indexes
    indexes: Tensor | None = None,  # [M]
    temperature: float | Tensor = 0.1,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """NT-Xent over any number of views: the views of a sample are positives, all others negatives.

    ``loss_i = −log( Σ_{p∈P(i)} e^{s_ip} / (Σ_{p∈P(i)} e^{s_ip} + Σ_{n∈N(i)} e^{s_in}) )`` with
    ``s_ij = cos(z_i, z_j) / temperature``, P(i) the other rows of i's sample and N(i) the rows of
    other samples, for each of the M = N·V rows; computed as ``softplus(log Σ_n e^{s_in} − log Σ_p
    e^{s_ip})``. With two views it is :func:`nt_xent`. The [M, M] matrix is never written.

    Args:
        z: embeddings, as [N, V, D] or as V tensors [N, D], V ≥ 2; or [M, D] with indexes. float32,
            bfloat16 or float16.
        indexes: integers, shape [M], on the device of z: the sample that each row is a view of, in
            any order, in any number. They are read on the host, so torch.compile breaks its graph
            here: give views where that matters.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        normalize: use cosine similarity; False: plain dot products. A zero vector is similar
            to nothing and receives no gradient.
        reduction: "mean" over the rows that have a positive, "sum", or "none" for shape [N, V], or
            [M] with indexes.
        group: a process group, or True for the default one: the batch is that of all its ranks, and
            "none" gives this rank's rows; see :mod:`fastssl.distributed`. All rows of a sample are
            on one rank.
        ring: with a group, pass embeddings around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs). A row whose sample has no other has no positive: its
        loss is 0 and does not count in the mean. With a single sample there is no negative and the
        loss is 0. NaN or infinite embeddings give NaN. Where the indexes occur differently often,
        or more than 16 times, a row's loss is a difference of log-sum-exps over all rows and over
        its positives, exact to some 1e-7 / temperature.

    Raises:
        TypeError: z is not floating-point tensors of one dtype, indexes are not integers.
        ValueError: other shapes or devices, an empty batch, a single view, a temperature that is
            not positive, an unknown reduction; the ranks of a group disagree, or a sample is on two
            of them.

    SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709, as solo-learn extends it
    """
    ranks = agree(group, ring, _check, z=z, indexes=indexes, temperature=temperature)
    scale = inverse_temperature(temperature)
    if indexes is None:
        views = z.unbind(1) if isinstance(z, Tensor) else z
        loss = _views_loss(views, scale, normalize, ranks)  # [N, V]
        return reduce(loss, reduction, ranks=ranks).to(loss_dtype(views[0]))
    assert isinstance(z, Tensor)
    loss, has_positive = _indexed_loss(z, indexes, scale, normalize, ranks)  # [M]
    return reduce(loss, reduction, has_positive, ranks=ranks).to(loss_dtype(z))


def _views_loss(
    views: Sequence[Tensor], scale: float | Tensor, normalize: bool, ranks: Local
) -> Tensor:
    """The loss of each row, [N, V]."""
    n = len(views[0])
    options: dict[str, Any] = {"scale": scale, "normalize": normalize, "self_offset": 0}
    rows_lse = partial(ranks.similarity_lse, **options)
    both_lse = partial(ranks.similarity_lse_both, **options)
    pair: dict[str, Any] = {"pair_offset": n, "exclude_pair": True}
    # Two views at a time, as the op can leave two columns out of a row's sum: those of its sample.
    blocks = [torch.cat(list(views[i : i + 2])) for i in range(0, len(views), 2)]  # [2N or N, D]
    parts: list[list[Tensor]] = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        parts[i].append(rows_lse(block, **pair if len(block) > n else {})[0])
        for j in range(i):
            lse, _, column_lse = both_lse(block, blocks[j], **pair)
            parts[i].append(lse)
            parts[j].append(column_lse)
    negatives = torch.cat([_lse(torch.stack(of_block, dim=1)) for of_block in parts])  # [VN]
    positives = _positives_lse(torch.stack(list(views), dim=1), scale, normalize)  # [N, V]
    return F.softplus(negatives.view(len(views), n).T - positives)


def _indexed_loss(
    z: Tensor, indexes: Tensor, scale: float | Tensor, normalize: bool, ranks: Local
) -> tuple[Tensor, Tensor]:
    """The loss of each row and whether it has a positive, [M]."""
    sample, others = group_rows(indexes)
    order = torch.argsort(others * len(z) + sample)  # samples side by side, the smallest first
    rows = z.index_select(0, order)
    sizes, counts = (t.tolist() for t in torch.unique(others + 1, return_counts=True))
    if _one_size(indexes, others, sizes, ranks) and 1 < sizes[0] <= FEW:
        views = rows.unflatten(0, (-1, sizes[0])).unbind(1)
        loss = _views_loss(views, scale, normalize, ranks).flatten()
    else:
        options: dict[str, Any] = {"scale": scale, "normalize": normalize, "self_offset": 0}
        positives = []
        for size, same in zip(sizes, rows.split(counts), strict=True):
            if size <= FEW:
                samples = same.unflatten(0, (-1, size))
                positives.append(_positives_lse(samples, scale, normalize).flatten())
            else:
                positives += [similarity_lse(part, **options)[0] for part in same.split(size)]
        lse = torch.cat(positives)
        everything, _ = ranks.similarity_lse(rows, **options)
        loss = torch.where(lse == float("-inf"), 0.0, everything - lse)
    return loss.index_select(0, order.argsort()), others > 0


def _one_size(indexes: Tensor, others: Tensor, sizes: list[int], ranks: Local) -> bool:
    """Whether all samples, on all ranks, have as many rows."""
    if ranks is LOCAL:
        return len(sizes) == 1
    _, everywhere = group_rows(ranks.gather(indexes))  # of all ranks' rows
    if ranks.sum((ranks.own(everywhere) != others).sum()):
        raise ValueError(
            "indexes: all rows of a sample must be on one rank, but some number is on two; give "
            "every sample of the whole batch its own"
        )
    return len(torch.unique(everywhere)) == 1


def _positives_lse(samples: Tensor, scale: float | Tensor, normalize: bool) -> Tensor:
    """Log-sum-exp of each row's positives, the other views [N, V, D] of its sample; [N, V]."""
    logits = scale * similarities(samples, samples, normalize)  # [N, V, V]
    itself = torch.eye(samples.shape[1], dtype=torch.bool, device=samples.device)
    return _lse(logits.masked_fill(itself, float("-inf")).flatten(0, 1)).view(samples.shape[:2])


def _lse(logits: Tensor) -> Tensor:
    """Row-wise log-sum-exp [M]; −inf, without gradient, for a row of nothing but −inf."""
    return masked_lse(logits, logits == float("-inf"))


def _check(
    z: Tensor | Sequence[Tensor], indexes: Tensor | None, temperature: float | Tensor
) -> None:
    check_temperature(temperature)
    if indexes is not None:
        check_floating(z=z)
        assert isinstance(z, Tensor)
        if z.dim() != 2 or 0 in z.shape:
            raise ValueError(
                f"with indexes z must have shape [M, D], neither zero, not {list(z.shape)}"
            )
        check_group_ids("indexes", indexes, [len(z)], z.device)
        return
    if isinstance(z, Tensor):
        if z.dim() != 3:
            raise ValueError(
                f"z must have shape [N, V, D], or [M, D] with indexes, not {list(z.shape)}"
            )
        z = z.unbind(1)
    if len(z) < 2:
        raise ValueError(f"z must hold at least two views of each sample, not {len(z)}")
    check_alike(**{f"z[{i}]": view for i, view in enumerate(z)})
