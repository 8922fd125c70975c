"""``similarity_lse_loss``: what a loss makes of ``similarity_lse``'s results, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.library import define


def similarity_lse_loss(
    pair: Tensor,  # [N]
    *lse: Tensor,  # [N] each
) -> Tensor:
    """``mean_i −log( e^{pair_i} / (e^{pair_i} + e^{lse_i}) )``, the end of contrastive losses.

    Computed as ``softplus(lse_i − pair_i)``, which keeps its digits when the pair dominates. On
    CUDA one launch forward and one backward (two forward beyond some thousand rows); elsewhere
    plain PyTorch, whose passes over vectors are nothing beside those over the matrix.

    Args:
        pair: logits of the positives, float64, shape [N].
        *lse: log-sum-exps of the negatives, one or two of the same shape: the mean is over both.

    Returns:
        A float32 scalar, added up in float64.
    """
    backend = backends.select("similarity_lse", pair.device.type)
    if backend != "triton":
        return references.similarity_lse_loss(pair, *lse).mean().float()
    first, *others = lse
    return _SimilarityLseLoss.apply(pair, first, others[0] if others else None, backend)


class _SimilarityLseLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pair, lse, other, backend):
        ctx.save_for_backward(pair, lse, other)
        ctx.backend = backend
        return backends.raw("similarity_lse_loss_fwd", backend)(pair, lse, other)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        pair, lse, other = ctx.saved_tensors
        d_pair, d_lse, d_other = backends.raw("similarity_lse_loss_bwd", ctx.backend)(
            d_loss, pair, lse, other
        )
        return d_pair, d_lse, None if other is None else d_other, None


def _reference_fwd(pair, lse, other):
    both = (lse,) if other is None else (lse, other)
    return references.similarity_lse_loss(pair, *both).mean().float()


def _reference_bwd(d_loss, pair, lse, other):
    both = (lse,) if other is None else (lse, other)
    each = d_loss.double() / (len(pair) * len(both))
    d_lse, *d_other = (each * torch.sigmoid(one - pair) for one in both)
    return -sum(d_other, d_lse), d_lse, d_other[0] if d_other else pair.new_empty(0)


def _bwd_fake(d_loss, pair, lse, other):
    d_other = pair.new_empty(0) if other is None else torch.empty_like(other)
    return torch.empty_like(pair), torch.empty_like(lse), d_other


define(
    "similarity_lse_loss_fwd(Tensor pair, Tensor lse, Tensor? other) -> Tensor",
    fake=lambda pair, lse, other: pair.new_empty((), dtype=torch.float32),
    reference=_reference_fwd,
    module="similarity_lse_loss",
)
define(
    "similarity_lse_loss_bwd(Tensor d_loss, Tensor pair, Tensor lse, Tensor? other) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_bwd_fake,
    reference=_reference_bwd,
    module="similarity_lse_loss",
)
