"""``similarity_lse``: the streamed log-sum-exp of scaled similarities, with exact gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_matrix, check_rows
from fastssl.ops.library import define


def similarity_lse(
    x: Tensor,  # [M, D]
    y: Tensor | None = None,  # [K, D]
    scale: float | Tensor = 1.0,
    *,
    normalize: bool = False,
    self_offset: int | None = None,
    pair_offset: int | None = None,
    exclude_pair: bool = False,
    pairs: Tensor | None = None,  # [M, D]
) -> tuple[Tensor, Tensor]:
    """Row-wise log-sum-exp of a similarity matrix that is never written.

    ``lse_i = log Σ_{j allowed for i} exp(scale · x_i·y_j)``, and beside it the logit of each
    row's pair, ``pair_i = scale · x_i·y_{p(i)}``. Both are differentiable in ``x``, ``y`` and
    ``scale``; the backward recomputes the similarities tile by tile. With ``y=None`` the rows
    are their own columns, the matrix is symmetric, and about half the work is saved.

    Args:
        x: rows, shape [M, D]; float32, bfloat16, float16 (float64 is served by the reference).
        y: columns, shape [K, D], dtype and device of ``x``; None: the rows themselves.
        scale: multiplies every similarity (1/temperature); a float or a 0-dim tensor.
        normalize: take cosine similarities. Rows shorter than 1e-12 count as zero vectors and
            receive no gradient.
        self_offset: leave column ``(i + self_offset) mod K`` out of row i's sum; None: none.
        pair_offset: row i's pair is column ``(i + pair_offset) mod K``; None: no pairs, and the
            second result is zero.
        exclude_pair: leave the pair out of the sum as well.
        pairs: row i's pair is row i of these, which is no column; shape, dtype and device of ``x``.

    Returns:
        ``(lse, pair)``, each of shape [M], float64 (float32 on devices without it): logits in
        the hundreds would leave float32 too few digits for the differences that losses are
        made of. A row with nothing left to sum has lse −inf and no gradient. A NaN or infinite
        input, or a NaN scale, gives NaN.

    Similarities are accumulated in float32. The error of a logit is scale times that of its
    similarity, so for float32 rows whose logits pass about 29 (a temperature below 0.034) CPUs
    compute in float64, at half the speed.

    Raises:
        TypeError: ``x`` or ``y`` is not a floating-point tensor, or their dtypes differ.
        ValueError: wrong number of dimensions, widths or devices that differ, no rows, no
            columns, no features, an offset outside [0, K), both pair_offset and pairs.
        BackendError: a backend was asked for that cannot serve these tensors.
    """
    check_matrix(x, y, scale, self_offset, pair_offset, exclude_pair)
    if pairs is not None:
        check_rows(x=x, pairs=pairs)
        if pairs.shape != x.shape:
            raise ValueError(
                f"pairs must have the shape of x, {list(x.shape)}, not {list(pairs.shape)}"
            )
        if pair_offset is not None:
            raise ValueError(
                f"pairs are rows of their own or columns: pair_offset must be None, "
                f"not {pair_offset}"
            )
    lse, pair, _ = _similarity_lse(
        x, y, scale, normalize, self_offset, pair_offset, exclude_pair, columns=False, pairs=pairs
    )
    return lse, pair


def similarity_lse_both(
    x: Tensor,  # [M, D]
    y: Tensor,  # [K, D]
    scale: float | Tensor = 1.0,
    *,
    normalize: bool = False,
    self_offset: int | None = None,
    pair_offset: int | None = None,
    exclude_pair: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of the rows and of the columns of one similarity matrix, from one pass.

    ``lse_i = log Σ_{j allowed} exp(scale · x_i·y_j)`` and
    ``column_lse_j = log Σ_{i allowed} exp(scale · x_i·y_j)``; what is excluded is left out of
    both sums. Arguments, dtypes and errors as :func:`similarity_lse`.

    Returns:
        ``(lse [M], pair [M], column_lse [K])``, float64.
    """
    if y is None:
        raise ValueError("y must be a tensor: with y=None rows and columns have the same sums")
    check_matrix(x, y, scale, self_offset, pair_offset, exclude_pair)
    return _similarity_lse(
        x, y, scale, normalize, self_offset, pair_offset, exclude_pair, columns=True
    )


def _similarity_lse(
    x, y, scale, normalize, self_offset, pair_offset, exclude_pair, columns, pairs=None
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.select("similarity_lse", x.device.type)
    if backend == "reference" or (x.dtype == torch.float64 and backend != "native"):
        return references.similarity_lse_both(
            x,
            y,
            scale,
            normalize=normalize,
            self_offset=self_offset,
            pair_offset=pair_offset,
            exclude_pair=exclude_pair,
            pairs=pairs,
        )
    tensor_scale = scale if isinstance(scale, Tensor) else None
    factor = 1.0 if isinstance(scale, Tensor) else float(scale)
    # Columns that want no gradient, such as a queue: one pass gives the rows' gradient as well.
    learning = x.requires_grad or (tensor_scale is not None and tensor_scale.requires_grad)
    frozen = y is not None and not y.requires_grad and learning and torch.is_grad_enabled()
    frozen = frozen and not columns and x.dtype != torch.float64  # means are float32
    options = (factor, normalize, self_offset, pair_offset, exclude_pair)
    return _SimilarityLse.apply(x, y, pairs, tensor_scale, *options, columns, frozen, backend)


class _SimilarityLse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, y, pairs, scale, factor, normalize, self_offset, pair_offset, exclude_pair, columns,
        mean, backend,
    ):  # fmt: skip
        options = (factor, normalize, self_offset, pair_offset, exclude_pair)
        lse, pair, column_lse, means = backends.raw("similarity_lse_fwd", backend)(
            x, y, scale, *options, columns, mean, pairs
        )
        if mean:  # nothing of y itself, so that a queue may move on before the backward
            pairs = pairs if pair_offset is None else y[_partners(x, y, pair_offset)]
            y = None
        ctx.save_for_backward(x, y, pairs, scale, lse, column_lse if columns else None, means)
        ctx.options, ctx.columns, ctx.mean, ctx.backend = options, columns, mean, backend
        unused = [pair] if pair_offset is None and pairs is None else []
        unused += [] if columns else [column_lse]
        ctx.mark_non_differentiable(*unused)
        return lse, pair, column_lse

    @staticmethod
    @once_differentiable
    def backward(ctx, d_lse, d_pair, d_column_lse):
        x, y, pairs, scale, lse, column_lse, means = ctx.saved_tensors
        need_x, need_y, need_pairs, need_scale = ctx.needs_input_grad[:4]
        factor, normalize, *_ = ctx.options
        d_x = d_y = d_pairs = d_scale = None
        if not ctx.mean and (need_x or need_y or need_scale):
            d_x, d_y, d_scale = backends.raw("similarity_lse_bwd", ctx.backend)(
                d_lse, d_pair, d_column_lse if ctx.columns else None,
                x, y, scale, lse, column_lse, *ctx.options, need_x, need_y, need_scale,
            )  # fmt: skip
        if ctx.mean or pairs is not None:
            of_x, d_pairs, of_scale = backends.raw("similarity_lse_pairs_bwd", ctx.backend)(
                d_lse, d_pair, x, pairs, scale, means if ctx.mean else None, factor, normalize,
                need_x, need_pairs, need_scale,
            )  # fmt: skip
            d_x = of_x if d_x is None else d_x + of_x
            d_scale = of_scale if d_scale is None else d_scale + of_scale
        return (
            d_x if need_x else None,
            d_y if need_y else None,
            d_pairs if need_pairs else None,
            d_scale if need_scale else None,
            *[None] * 8,
        )


def _partners(x, y, pair_offset):
    return (torch.arange(len(x), device=x.device) + pair_offset) % len(y)


def _reference_pairs_bwd(
    d_lse,  # [M]
    d_pair,  # [M]
    x,  # [M, D]
    pairs,  # [M, D], or None
    scale,
    mean,  # [M, D] Σ_j p_ij y_j, y normalised where x is; or None
    factor,
    normalize,
    need_x,
    need_pairs,
    need_scale,
):
    """The gradients of ``d_lse_i · x_i·mean_i + d_pair_i · x_i·pairs_i``, scaled: what is left of
    the op's where the forward kept each row's softmax-weighted mean, and the part of pairs that
    are no columns."""

    def turned(vectors):
        wide = vectors.double()
        inverse = references.inverse_norms(wide) if normalize else 1.0  # [M, 1]
        return wide * inverse, inverse

    def back(unit, inverse, direction, like):
        if normalize:
            direction = (direction - unit * (unit * direction).sum(1, keepdim=True)) * inverse
        return (direction * gain).to(like.dtype).contiguous()

    gain = factor if scale is None else scale * factor
    rows, inverse = turned(x)
    direction = 0.0 if mean is None else d_lse[:, None] * mean  # [M, D]
    d_x, d_pairs, d_scale = (x.new_empty(0) for _ in range(3))
    if pairs is not None:
        others, inverse_other = turned(pairs)
        direction = d_pair[:, None] * others + direction
        if need_pairs:
            d_pairs = back(others, inverse_other, d_pair[:, None] * rows, pairs)
    if need_x:
        d_x = back(rows, inverse, direction, x)
    if need_scale:
        d_scale = ((rows * direction).sum() * factor).to(scale.dtype)
    return d_x, d_pairs, d_scale


_OPTIONS = (
    "float factor, bool normalize, SymInt? self_offset, SymInt? pair_offset, bool exclude_pair"
)


def _fwd_fake(
    x, y, scale, factor, normalize, self_offset, pair_offset, exclude_pair, columns, mean,
    pairs=None,
):  # fmt: skip
    def vector(length):
        return x.new_empty(length, dtype=torch.float64)

    m = x.shape[0]
    return (
        vector(m),
        vector(m),
        vector(y.shape[0] if columns else 0),
        x.new_empty(x.shape if mean else 0, dtype=torch.float32),
    )


def _gradient_fake(like, needed):
    # What is not needed comes back as an empty tensor.
    if not needed:
        return like.new_empty(0)
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _bwd_fake(
    d_lse, d_pair, d_column_lse, x, y, scale, lse, column_lse,
    factor, normalize, self_offset, pair_offset, exclude_pair, need_x, need_y, need_scale,
):  # fmt: skip
    d_y = _gradient_fake(y, True) if need_y else x.new_empty(0)
    d_scale = torch.empty_like(scale) if need_scale else x.new_empty(0)
    return _gradient_fake(x, need_x), d_y, d_scale


def _pairs_bwd_fake(
    d_lse, d_pair, x, pairs, scale, mean, factor, normalize, need_x, need_pairs, need_scale
):
    d_pairs = _gradient_fake(x, need_pairs)
    d_scale = torch.empty_like(scale) if need_scale else x.new_empty(0)
    return _gradient_fake(x, need_x), d_pairs, d_scale


def _reference(x, y, scale, factor, normalize, self_offset, pair_offset, exclude_pair, pairs=None):
    return references.similarity_lse_both(
        x,
        y,
        factor if scale is None else scale * factor,
        normalize=normalize,
        self_offset=self_offset,
        pair_offset=pair_offset,
        exclude_pair=exclude_pair,
        pairs=pairs,
    )


def _reference_fwd(
    x, y, scale, factor, normalize, self_offset, pair_offset, exclude_pair, columns, mean,
    pairs=None,
):  # fmt: skip
    options = (factor, normalize, self_offset, pair_offset, exclude_pair)
    lse, pair, column_lse = _reference(x, y, scale, *options, pairs)
    means = x.new_empty(0, dtype=torch.float32)
    if mean:  # it is the gradient of lse for x where the scale is 1 and x is not normalised
        gain = factor if scale is None else scale.double() * factor
        rows, others = x.detach().double(), y.detach().double()
        if normalize:
            rows, others = references.unit_rows(rows), references.unit_rows(others)
        rows = (rows * gain).requires_grad_()
        with torch.enable_grad():
            again = _reference(rows, others, None, 1.0, False, *options[2:])[0]
        means = torch.autograd.grad(again.sum(), rows)[0].float()
    return lse, pair, column_lse if columns else column_lse.new_empty(0), means


def _reference_bwd(
    d_lse, d_pair, d_column_lse, x, y, scale, lse, column_lse,
    factor, normalize, self_offset, pair_offset, exclude_pair, need_x, need_y, need_scale,
):  # fmt: skip
    inputs = [
        t.detach().requires_grad_(need) if t is not None else None
        for t, need in ((x, need_x), (y, need_y), (scale, need_scale))
    ]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    with torch.enable_grad():
        outputs = _reference(*inputs, factor, normalize, self_offset, pair_offset, exclude_pair)
    upstream = (d_lse, d_pair, d_column_lse)
    used = [i for i, d in enumerate(upstream) if d is not None and outputs[i].requires_grad]
    outputs, upstream = [outputs[i] for i in used], [upstream[i] for i in used]
    gradients = iter(torch.autograd.grad(outputs, wanted, upstream, materialize_grads=True))
    return tuple(
        next(gradients).contiguous() if need else x.new_empty(0)
        for need in (need_x, need_y, need_scale)
    )


define(
    f"similarity_lse_fwd(Tensor x, Tensor? y, Tensor? scale, {_OPTIONS}, bool columns, bool mean, "
    "Tensor? pairs=None) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="similarity_lse",
)
define(
    "similarity_lse_bwd(Tensor d_lse, Tensor d_pair, Tensor? d_column_lse, Tensor x, Tensor? y, "
    f"Tensor? scale, Tensor lse, Tensor? column_lse, {_OPTIONS}, "
    "bool need_x, bool need_y, bool need_scale) -> (Tensor, Tensor, Tensor)",
    fake=_bwd_fake,
    reference=_reference_bwd,
    module="similarity_lse",
)
define(
    "similarity_lse_pairs_bwd(Tensor d_lse, Tensor d_pair, Tensor x, Tensor? pairs, Tensor? scale, "
    "Tensor? mean, float factor, bool normalize, bool need_x, bool need_pairs, bool need_scale) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_pairs_bwd_fake,
    reference=_reference_pairs_bwd,
    module="similarity_lse_pairs",
)
backends.register("similarity_lse", "native", "triton")
