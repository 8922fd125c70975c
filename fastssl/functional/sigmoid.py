"""Sigmoid losses: each a formula over ``similarity_softplus``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.common import loss_dtype
from fastssl.functional.image_text import check_image_text


def siglip_loss(
    image_features: Tensor,  # [N, D]
    text_features: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    *,
    logit_bias: float | Tensor | None = None,
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """Sigmoid loss for image-text pairs: every image and every text, a pair or not.

    ``−(1/N) Σ_ij log sigmoid(z_ij · t_ij)`` with ``t_ij = logit_scale · x_i·y_j + logit_bias`` and
    z_ij = 1 for i = j, otherwise −1. It is computed as
    ``(1/N) Σ_i [Σ_{j≠i} softplus(t_ij) + softplus(−t_ii)]``; the [N, N] matrix is never written.

    Args:
        image_features: shape [N, D], already normalised; float32, bfloat16 or float16.
        text_features: same shape, dtype and device; row i of both is one pair.
        logit_scale: multiplies the similarities: a float or a 0-dim tensor, which may require
            grad. The scale itself, not its logarithm.
        logit_bias: added to the logits: a float or a 0-dim tensor, which may require grad;
            None: 0. The paper starts from scale 10 and bias −10.
        group: a process group, or True for the default one: the batch is that of all its ranks; see
            :mod:`fastssl.distributed`.
        ring: with a group, pass features around a ring: less memory than gathering them.

    Returns:
        A float32 scalar (float64 for float64 inputs): the sum over all N² entries, over N. NaN or
        infinite features give NaN, as does a NaN scale or bias.

    Raises:
        TypeError: the features are not floating-point tensors of one dtype, or logit_scale or
            logit_bias is neither a float nor a tensor.
        ValueError: shapes or devices differ, the batch is empty, logit_scale or logit_bias is a
            tensor that is not 0-dim or lives on another device, the ranks of a group disagree.

    Sigmoid loss, Zhai et al. 2023, https://arxiv.org/abs/2303.15343
    """
    ranks = agree(
        group,
        ring,
        check_image_text,
        image_features=image_features,
        text_features=text_features,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    bias = 0.0 if logit_bias is None else logit_bias
    total, pair = ranks.similarity_softplus(
        image_features, text_features, logit_scale, bias, pair_offset=0, exclude_pair=True
    )
    return ranks.mean(total - F.logsigmoid(pair)).to(loss_dtype(image_features))
