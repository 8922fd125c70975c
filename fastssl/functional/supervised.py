"""Supervised contrastive loss: positives by class sums, everything else by ``similarity_lse``."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.functional.common import (
    Reduction,
    check_floating,
    check_group_ids,
    group_rows,
    inverse_temperature,
    loss_dtype,
    reduce,
    widened,
)
from fastssl.ops import similarity_lse
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

    Returns:
        float32 (float64 for float64 inputs). An anchor without a positive has loss 0 and does not
        count in the mean; without any such anchor the mean is 0. NaN or infinite features give NaN.

    Raises:
        TypeError: features are not floating-point, labels not integers.
        ValueError: other shapes or devices, an empty batch, a single view without labels, a
            temperature that is not positive, an unknown contrast_mode or reduction.

    SupCon, Khosla et al. 2020, https://arxiv.org/abs/2004.11362
    """
    scale = inverse_temperature(temperature)
    _check(features, labels, contrast_mode)
    n, views = features.shape[0], 1 if features.dim() == 2 else features.shape[1]
    x = features if features.dim() == 2 else features.transpose(0, 1).flatten(0, 1)  # [VN, D]
    sample = torch.arange(n, device=x.device)
    classes, positives = group_rows((sample if labels is None else labels).repeat(views))
    anchors = n if contrast_mode == "one" else len(x)  # the first view's rows come first

    paired = views == 2  # then every row has a positive at a known place
    negatives, pair = similarity_lse(
        x[:anchors],
        x if anchors < len(x) else None,
        scale,
        normalize=normalize,
        self_offset=0,
        pair_offset=n if paired else None,
        exclude_pair=paired,
    )
    mean = _PositiveMean.apply(unit_rows(widened(x)) if normalize else x, classes, positives)
    positive, has_positive = scale * mean[:anchors], positives[:anchors] > 0
    if paired:
        # A single positive may dominate its row: then this form keeps the digits.
        single = positives[:anchors] == 1
        loss = F.softplus(negatives - pair) + torch.where(single, 0.0, pair - positive)
    else:
        loss = torch.where(has_positive, negatives - positive, 0.0)
    if base_temperature is not None:
        loss = loss * (temperature * inverse_temperature(base_temperature, "base_temperature"))
    if reduction == "none" and features.dim() == 3 and contrast_mode == "all":
        loss = loss.view(views, n).T
    return reduce(loss, reduction, has_positive).to(loss_dtype(features))


def _class_sums(x: Tensor, classes: Tensor) -> Tensor:
    """For each row the sum over its class, [M, D]."""
    return torch.zeros_like(x).index_add_(0, classes, x).index_select(0, classes)


class _PositiveMean(torch.autograd.Function):
    """``x_i·Σ_{p∈P(i)} x_p / |P(i)|`` for each row, 0 where it has no positive; float64 [M].

    A function of its own because autograd would keep float64 class sums of all features.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, classes: Tensor, positives: Tensor) -> Tensor:
        weights = 1 / widened(positives.clamp(min=1))  # [M]
        ctx.save_for_backward(x, classes, weights)
        mean = torch.zeros_like(weights)
        for part in map(widened, x.split(SLICE, dim=1)):
            mean += (part * (_class_sums(part, classes) - part)).sum(1)
        return mean * weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mean: Tensor) -> tuple[Tensor, None, None]:
        x, classes, weights = ctx.saved_tensors
        weights = (d_mean * weights)[:, None]  # [M, 1]
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        for part, d_part in zip(x.split(SLICE, dim=1), d_x.split(SLICE, dim=1), strict=True):
            part = widened(part)
            weighted = weights * part
            d_part.copy_(
                weights * (_class_sums(part, classes) - part)
                + _class_sums(weighted, classes)
                - weighted
            )
        return d_x, None, None


def _check(features: Tensor, labels: Tensor | None, contrast_mode: str) -> None:
    check_floating(features=features)
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
