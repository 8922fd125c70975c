"""``similarity_softplus``: streamed sums of softplus over scaled similarities, exact gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_matrix, check_zero_dim
from fastssl.ops.library import define


def similarity_softplus(
    x: Tensor,  # [M, D]
    y: Tensor,  # [K, D]
    scale: float | Tensor = 1.0,
    bias: float | Tensor = 0.0,
    *,
    normalize: bool = False,
    pair_offset: int | None = None,
    exclude_pair: bool = False,
) -> tuple[Tensor, Tensor]:
    """Row-wise sums of softplus over a similarity matrix that is never written.

    ``total_i = Σ_{j allowed for i} log(1 + exp(scale · x_i·y_j + bias))``, and beside it the logit
    of each row's pair, ``pair_i = scale · x_i·y_{p(i)} + bias``. Both are differentiable in ``x``,
    ``y``, ``scale`` and ``bias``; the backward recomputes the logits tile by tile.

    Args:
        x: rows, shape [M, D]; float32, bfloat16, float16 (float64 is served by the reference).
        y: columns, shape [K, D], dtype and device of ``x``.
        scale: multiplies every similarity; a float or a 0-dim tensor.
        bias: added to every logit; a float or a 0-dim tensor.
        normalize: take cosine similarities. Rows shorter than 1e-12 count as zero vectors and
            receive no gradient.
        pair_offset: row i's pair is column ``(i + pair_offset) mod K``; None: no pairs, and the
            second result is zero.
        exclude_pair: leave the pair out of the sum.

    Returns:
        ``(total, pair)``, each of shape [M], float64 (float32 on devices without it). A row with
        nothing left to sum has total 0 and no gradient. Logits are computed in float32; each term
        keeps its relative digits down to 1e-37, and counts as no more than that below. A NaN or
        infinite input, or a NaN scale or bias, gives NaN.

    Raises:
        TypeError: ``x`` or ``y`` is not a floating-point tensor, or their dtypes differ.
        ValueError: wrong number of dimensions, widths or devices that differ, no rows, no
            columns, no features, a pair_offset outside [0, K).
        BackendError: a backend was asked for that cannot serve these tensors.

    Sigmoid loss, Zhai et al. 2023, https://arxiv.org/abs/2303.15343
    """
    _check(x, y, scale, bias, pair_offset, exclude_pair)
    backend = backends.select("similarity_softplus", x.device.type)
    if backend == "reference" or x.dtype == torch.float64:
        return references.similarity_softplus(
            x,
            y,
            scale,
            bias,
            normalize=normalize,
            pair_offset=pair_offset,
            exclude_pair=exclude_pair,
        )
    tensor_scale, factor = (scale, 1.0) if isinstance(scale, Tensor) else (None, float(scale))
    tensor_bias, shift = (bias, 0.0) if isinstance(bias, Tensor) else (None, float(bias))
    options = (factor, shift, normalize, pair_offset, exclude_pair)
    return _SimilaritySoftplus.apply(x, y, tensor_scale, tensor_bias, *options, backend)


class _SimilaritySoftplus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair, backend
    ):
        options = (factor, shift, normalize, pair_offset, exclude_pair)
        total, pair = backends.raw("similarity_softplus_fwd", backend)(x, y, scale, bias, *options)
        ctx.save_for_backward(x, y, scale, bias)
        ctx.options, ctx.backend = options, backend
        if pair_offset is None:
            ctx.mark_non_differentiable(pair)
        return total, pair

    @staticmethod
    @once_differentiable
    def backward(ctx, d_total, d_pair):
        needs = ctx.needs_input_grad[:4]
        gradients = backends.raw("similarity_softplus_bwd", ctx.backend)(
            d_total, d_pair, *ctx.saved_tensors, *ctx.options, *needs
        )
        return (
            *(d if need else None for d, need in zip(gradients, needs, strict=True)),
            *[None] * 6,
        )


def _check(x, y, scale, bias, pair_offset, exclude_pair) -> None:
    if y is None:
        raise TypeError("y must be a tensor, not None")
    check_matrix(x, y, scale, None, pair_offset, exclude_pair)
    if isinstance(bias, Tensor):
        check_zero_dim("bias", bias)
        if bias.device != x.device:
            raise ValueError(f"bias must be on the device of x, {x.device}, not {bias.device}")


_INPUTS = "Tensor x, Tensor y, Tensor? scale, Tensor? bias"
_OPTIONS = "float factor, float shift, bool normalize, SymInt? pair_offset, bool exclude_pair"


def _fwd_fake(x, y, scale, bias, *options):
    total = x.new_empty(x.shape[0], dtype=torch.float64)
    return total, torch.empty_like(total)


def _bwd_fake(
    d_total, d_pair, x, y, scale, bias,
    factor, shift, normalize, pair_offset, exclude_pair, *needs,
):  # fmt: skip
    # What is not needed comes back as an empty tensor.
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if need else x.new_empty(0)
        for t, need in zip((x, y, scale, bias), needs, strict=True)
    )


def _reference_fwd(x, y, scale, bias, factor, shift, normalize, pair_offset, exclude_pair):
    return references.similarity_softplus(
        x,
        y,
        factor if scale is None else scale * factor,
        shift if bias is None else bias + shift,
        normalize=normalize,
        pair_offset=pair_offset,
        exclude_pair=exclude_pair,
    )


def _reference_bwd(
    d_total, d_pair, x, y, scale, bias,
    factor, shift, normalize, pair_offset, exclude_pair, *needs,
):  # fmt: skip
    inputs = [
        t.detach().requires_grad_(need) if t is not None else None
        for t, need in zip((x, y, scale, bias), needs, strict=True)
    ]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    with torch.enable_grad():
        outputs = _reference_fwd(*inputs, factor, shift, normalize, pair_offset, exclude_pair)
    if pair_offset is None:
        outputs, upstream = outputs[:1], (d_total,)
    else:
        upstream = (d_total, d_pair)
    gradients = iter(torch.autograd.grad(outputs, wanted, upstream))
    return tuple(next(gradients).contiguous() if need else x.new_empty(0) for need in needs)


define(
    f"similarity_softplus_fwd({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="similarity_softplus",
)
define(
    f"similarity_softplus_bwd(Tensor d_total, Tensor d_pair, {_INPUTS}, {_OPTIONS}, bool need_x, "
    "bool need_y, bool need_scale, bool need_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_bwd_fake,
    reference=_reference_bwd,
    module="similarity_softplus",
)
backends.register("similarity_softplus", "native", "triton")
