"""Supervised contrastive loss: positives by class sums, everything else by ``similarity_lse``."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.distributed import LOCAL, Group, Local, agree
from fastssl.functional.common import (
    Reduction,
    check_floating,
    check_group_ids,
    check_temperature,
    group_rows,
    inverse_temperature,
    loss_dtype,
    reduce,
    widened,
)
from fastssl.reference.similarity_lse import unit_rows

# Features in one slice of the class sums, which are float64: memory for a slice only.
SLICE = 16


def sup_con(
    features: Tensor,  # [N, D] or [N, V, D]
    labels: Tensor | None = None,  # [N]
    temperature: float | Tensor = 0.07,
    base_temperature: float | None = None,
    *,
    contrast_mode: Literal["all", "one"] = "all",
    normalize: bool = False,
    reduction: Reduction = "mean",
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """Supervised contrastive loss: each row is drawn to all others of its class.

    ``loss_i = −(1/|P(i)|) Σ_{p∈P(i)} log( e^{s_ip} / Σ_{j≠i} e^{s_ij} )`` with ``s_ij = x_i·x_j /
    temperature`` and P(i) the other rows of i's class, times ``temperature / base_temperature``.
    Neither the matrix of similarities nor a mask of that size is written: the positives' mean is
    ``x_i·(C − x_i) / (|C| − 1)`` with C the sum of the class.

    Args:
        features: shape [N, D], or [N, V, D] for V views of each sample; float32, bfloat16 or
            float16.
        labels: integers, shape [N], on the same device; None: the views of a sample are its class
            (with two views: NT-Xent).
        temperature: positive float, or a 0-dim tensor, which may require grad.
        base_temperature: the loss is multiplied by temperature / base_temperature; None: by 1. The
            authors' code has 0.07.
        contrast_mode: "all": every row is an anchor; "one": the first view of each sample only.
        normalize: use cosine similarity; a zero vector is then similar to nothing and receives no
            gradient. False, as in the authors' code: plain dot products of features that come
            normalised.
        reduction: "mean" over the anchors that have a positive, "sum", or "none" for the shape of
            features without D ([N] for "one").
        group: a process group, or True for the default one: batch and classes are those of all its
            ranks, and "none" gives this rank's rows; see :mod:`fastssl.distributed`.
        ring: with a group, pass features around a ring: less memory than gathering them.

    Returns:
        float32 (float64 for float64 inputs). An anchor without a positive has loss 0 and does not
        count in the mean; without any such anchor the mean is 0. NaN or infinite features give NaN.

    Raises:
        TypeError: features are not floating-point, labels not integers.
        ValueError: other shapes or devices, an empty batch, a single view without labels, a
            temperature that is not positive, an unknown contrast_mode or reduction, ranks of a
            group that disagree.

    SupCon, Khosla et al. 2020, https://arxiv.org/abs/2004.11362
    """
    ranks = agree(
        group,
        ring,
        _check,
        features=features,
        labels=labels,
        temperature=temperature,
        base_temperature=base_temperature,
        contrast_mode=contrast_mode,
    )
    scale = inverse_temperature(temperature)
    n, views = features.shape[0], 1 if features.dim() == 2 else features.shape[1]
    x = features if features.dim() == 2 else features.transpose(0, 1).flatten(0, 1)  # [VN, D]
    own = torch.arange(n, device=x.device)  # without labels each sample is a class of its own
    sharing = LOCAL if labels is None else ranks
    classes, others, count = _classes(own if labels is None else labels, sharing)
    classes, positives = classes.repeat(views), (views * (others + 1) - 1).repeat(views)  # [VN]
    anchors = n if contrast_mode == "one" else len(x)  # the first view's rows come first

    paired = views == 2  # then every row has a positive at a known place
    negatives, pair = ranks.similarity_lse(
        x[:anchors],
        x if anchors < len(x) else None,
        scale,
        normalize=normalize,
        self_offset=0,
        pair_offset=n if paired else None,
        exclude_pair=paired,
    )
    rows = unit_rows(widened(x)) if normalize else x
    mean = _PositiveMean.apply(rows, classes, positives, count, sharing)
    positive, has_positive = scale * mean[:anchors], positives[:anchors] > 0
    if paired:
        # A single positive may dominate its row: then this form keeps the digits.
        single = positives[:anchors] == 1
        loss = F.softplus(negatives - pair) + torch.where(single, 0.0, pair - positive)
    else:
        loss = torch.where(has_positive, negatives - positive, 0.0)
    if base_temperature is not None:
        loss = loss * (temperature * inverse_temperature(base_temperature))
    if reduction == "none" and features.dim() == 3 and contrast_mode == "all":
        loss = loss.view(views, n).T
    return reduce(loss, reduction, has_positive, ranks=ranks).to(loss_dtype(features))


def _classes(labels: Tensor, ranks: Local) -> tuple[Tensor, Tensor, int]:
    """For labels [N] a number for each one's class, how many others have it, [N], and a bound of
    the numbers."""
    if ranks is LOCAL:
        return *group_rows(labels), len(labels)
    _, numbers, sizes = ranks.gather(labels).unique(return_inverse=True, return_counts=True)
    return ranks.own(numbers), ranks.own(sizes[numbers] - 1), len(sizes)


def _class_sums(x: Tensor, classes: Tensor, count: int, ranks: Local) -> Tensor:
    """For each row the sum over its class, [M, D]."""
    sums = x.new_zeros(count, x.shape[1]).index_add_(0, classes, x)
    return ranks.sum(sums).index_select(0, classes)


class _PositiveMean(torch.autograd.Function):
    """``x_i·Σ_{p∈P(i)} x_p / |P(i)|`` for each row, 0 where it has no positive; float64 [M].

    A function of its own because autograd would keep float64 class sums of all features.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, classes: Tensor, positives: Tensor, count: int, ranks: Local
    ) -> Tensor:
        weights = 1 / widened(positives.clamp(min=1))  # [M]
        ctx.save_for_backward(x, weights)
        ctx.sums = partial(_class_sums, classes=classes, count=count, ranks=ranks)
        mean = torch.zeros_like(weights)
        for part in map(widened, x.split(SLICE, dim=1)):
            mean += (part * (ctx.sums(part) - part)).sum(1)
        return mean * weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weights = ctx.saved_tensors
        weights = (d_mean * weights)[:, None]  # [M, 1]
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, d_part in zip(x.split(SLICE, dim=1), d_x.split(SLICE, dim=1), strict=True):
            part = widened(part)
            weighted = weights * part
            d_part.copy_(weights * (ctx.sums(part) - part) + ctx.sums(weighted) - weighted)
        return d_x, None, None, None, None


def _check(
    features: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    base_temperature: float | None,
    contrast_mode: str,
) -> None:
    check_floating(features=features)
    check_temperature(temperature)
    if base_temperature is not None:
        check_temperature(base_temperature, "base_temperature")
    shape = list(features.shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"features must have shape [N, D] or [N, V, D], not {shape}")
    if 0 in shape:
        raise ValueError(f"features must hold at least one row and feature, not {shape}")
    if labels is not None:
        check_group_ids("labels", labels, shape[:1], features.device)
    elif len(shape) == 2 or shape[1] == 1:
        raise ValueError(f"labels are needed for a single view of each sample, {shape}")
    if contrast_mode not in ("all", "one"):
        raise ValueError(f'contrast_mode must be "all" or "one", not {contrast_mode!r}')
