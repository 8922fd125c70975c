"""Image-text losses over both directions of one similarity matrix."""

from __future__ import annotations

from torch import Tensor

from fastssl.distributed import Group, agree
from fastssl.functional.common import check_alike, check_scalar, loss_dtype, pair_loss


def clip_loss(
    image_features: Tensor,  # [N, D]
    text_features: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    *,
    logit_bias: float | Tensor | None = None,
    group: Group = None,
    ring: bool = False,
) -> Tensor:
    """CLIP: tell each image's text from the batch's texts, and each text's image.

    ``½ mean_i −log( e^{s_ii} / Σ_j e^{s_ij} ) + ½ mean_j −log( e^{s_jj} / Σ_i e^{s_ij} )`` with
    ``s_ij = logit_scale · image_i·text_j``. Each cross entropy is computed as
    ``softplus(log Σ_{j≠i} e^{s_ij} − s_ii)``, which keeps its digits when the pair dominates; both
    directions come from one pass. The [N, N] matrix is never written.

    Args:
        image_features: shape [N, D], already normalised; float32, bfloat16 or float16.
        text_features: same shape, dtype and device; row i of both is one pair.
        logit_scale: multiplies the similarities: a float or a 0-dim tensor, which may require
            grad. It is the scale itself, not its logarithm.
        logit_bias: added to all logits alike, which changes neither softmax: accepted for models
            that have one, a float or a 0-dim tensor; its gradient is zero.
        group: a process group, or True for the default one: the batch is that of all its ranks; see
            :mod:`fastssl.distributed`.
        ring: with a group, pass features around a ring: less memory than gathering them.

    Returns:
        A float32 scalar (float64 for float64 inputs). With N = 1 there is nothing to tell apart
        and the loss is 0. NaN or infinite features give NaN, as does a NaN scale.

    Raises:
        TypeError: the features are not floating-point tensors of one dtype, or logit_scale or
            logit_bias is no number.
        ValueError: shapes or devices differ, the batch is empty, logit_scale or logit_bias is a
            tensor that is not 0-dim or lives on another device, the ranks of a group disagree.

    CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020
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
    texts, pair, images = ranks.similarity_lse_both(
        image_features, text_features, logit_scale, pair_offset=0, exclude_pair=True
    )
    loss = pair_loss(pair, texts, images, ranks=ranks, like=image_features)
    if logit_bias is not None:
        loss = loss + 0 * logit_bias  # keeps the parameter in the graph, with gradient zero
    return loss.to(loss_dtype(image_features))


def check_image_text(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> None:
    """Features of one dtype, device and shape [N, D], and numbers beside them."""
    check_alike(image_features=image_features, text_features=text_features)
    check_scalar("logit_scale", logit_scale, image_features.device)
    if logit_bias is not None:
        check_scalar("logit_bias", logit_bias, image_features.device)
