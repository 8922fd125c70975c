"""similarity_lse: every form of the op against the float64 reference, and torch's own checks."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastssl
from fastssl.ops import similarity_lse, similarity_lse_both
from tests.numerics import relative

raw = torch.ops.fastssl

# (M, K, options); K None: y=None. Offsets that wrap, pairs beyond the rows, both exclusions.
FORMS = {
    "plain": (37, 53, {}),
    "cosine": (37, 53, dict(normalize=True)),
    "wide": (5, 211, dict(normalize=True, pair_offset=7)),
    "tall": (211, 5, dict(pair_offset=3, exclude_pair=True)),
    "shard": (24, 96, dict(normalize=True, self_offset=24, pair_offset=72, exclude_pair=True)),
    "wrapping": (60, 64, dict(self_offset=60, pair_offset=63, normalize=True)),
    "symmetric": (101, None, {}),
    "symmetric cosine": (101, None, dict(normalize=True, self_offset=0)),
    "symmetric pairs": (102, None, dict(self_offset=0, pair_offset=51, exclude_pair=True)),
    "symmetric kept pair": (9, None, dict(normalize=True, self_offset=0, pair_offset=4)),
}


def inputs(form, dtype=torch.float32, d=19, seed=0):
    m, k, options = FORMS[form]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, d, generator=generator).to(dtype)
    y = None if k is None else torch.randn(k, d, generator=generator).to(dtype)
    upstream = torch.randn(2, m, generator=generator, dtype=torch.float64)
    return x, y, options, upstream


def gradients(x, y, scale, options, upstream, needs=(True, True, True)):
    tensors = [
        t.detach().requires_grad_(need) if t is not None else None
        for t, need in zip((x, y, scale), needs, strict=True)
    ]
    outputs = similarity_lse(*tensors, **options)
    wanted = [t for t in tensors if t is not None and t.requires_grad]
    n = 1 if options.get("pair_offset") is None else 2
    assert not outputs[1].any() if n == 1 else True
    return outputs, torch.autograd.grad(outputs[:n], wanted, tuple(upstream[:n]))


@pytest.mark.parametrize("scale", [0.5, 30.0, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.instruction_sets
def test_native_is_the_reference(form, dtype, scale):
    x, y, options, upstream = inputs(form, dtype)
    s = torch.tensor(scale)
    with fastssl.use_backend("native"):
        mine, d_mine = gradients(x, y, s, options, upstream)
    wide = [None if t is None else t.double() for t in (x, y, s)]
    right, d_right = gradients(*wide, options, upstream)
    for a, b in zip(mine, right, strict=True):
        assert a.dtype == torch.float64
        assert relative(a, b) < 1e-6
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    for a, b, t in zip(d_mine, d_right, [t for t in (x, y, s) if t is not None], strict=True):
        assert a.dtype == t.dtype
        assert a.shape == t.shape
        assert relative(a, b) < bound


RECTANGLES = [form for form, (_, k, _) in FORMS.items() if k is not None]


@pytest.mark.parametrize("scale", [0.5, 20.0, 300.0, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", RECTANGLES)
def test_columns_and_rows_in_one_pass(form, dtype, scale):
    x, y, options, upstream = inputs(form, dtype)
    d_columns = torch.randn(len(y), generator=torch.Generator().manual_seed(5)).double()
    results = []
    for backend, wide in (("native", dtype), ("reference", torch.float64)):
        leaves = [t.to(wide).requires_grad_() for t in (x, y)]
        s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        with fastssl.use_backend(backend):
            lse, pair, column_lse = similarity_lse_both(*leaves, s, **options)
        loss = (lse * upstream[0]).sum() + (pair * upstream[1]).sum()
        loss = loss + (torch.where(column_lse.isinf(), 0.0, column_lse) * d_columns).sum()
        gradients = torch.autograd.grad(loss, (*leaves, s))
        results.append(((lse.detach(), pair.detach(), column_lse.detach()), gradients))
    (mine, d_mine), (right, d_right) = results
    for a, b in zip(mine, right, strict=True):
        finite = torch.isfinite(b)
        assert torch.equal(a[~finite], b[~finite])
        assert relative(a[finite], b[finite]) < 1e-6
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for a, b in zip(d_mine, d_right, strict=True):
        assert relative(a, b) < bound


@pytest.mark.parametrize("scale", [0.5, 20.0, 300.0, -2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [*RECTANGLES, "queue"])
def test_frozen_columns_give_the_rows_gradient_in_one_pass(form, dtype, scale, monkeypatch):
    x, y, options, upstream = inputs(form, dtype) if form != "queue" else queue(dtype)
    results = []
    for backend, wide in (("native", dtype), ("reference", torch.float64)):
        rows = x.to(wide).requires_grad_()
        s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
        with fastssl.use_backend(backend):
            lse, pair = similarity_lse(rows, y.to(wide), s, **options)
        with monkeypatch.context() as patch:
            patch.setattr("fastssl.backends.raw", without_matrix(fastssl.backends.raw))
            outputs = [torch.where(lse.isinf(), 0.0, lse)]
            outputs += [] if options.get("pair_offset") is None else [pair]
            d_outputs = tuple(upstream[: len(outputs)])
            d_rows, d_s = torch.autograd.grad(outputs, (rows, s), d_outputs)
        results.append(((lse.detach(), pair.detach()), (d_rows, d_s)))
    (mine, d_mine), (right, d_right) = results
    for a, b in zip(mine, right, strict=True):
        assert relative(a, b) < 1e-6
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for a, b in zip(d_mine, d_right, strict=True):
        assert relative(a, b) < bound


def without_matrix(raw):
    """What calls raw ops, but for the backward that recomputes the matrix."""

    def call(name, backend):
        assert name != "similarity_lse_bwd"
        return raw(name, backend)

    return call


def queue(dtype):
    """More columns than one segment, a part of a tile at the end, more rows than a block."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(270, 21, generator=generator), torch.randn(1700, 21, generator=generator)
    upstream = torch.randn(2, 270, generator=generator, dtype=torch.float64)
    options = dict(normalize=True, self_offset=800, pair_offset=1690, exclude_pair=True)
    return x.to(dtype), y.to(dtype), options, upstream


@pytest.mark.parametrize("pair_offset", [None, 4])
def test_a_queue_may_move_on_before_the_backward(pair_offset):
    x, y = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8)
    results = []
    for overwrite in (False, True):
        queue = y.clone()
        lse, pair = similarity_lse(x, queue, 5.0, normalize=True, pair_offset=pair_offset)
        if overwrite:
            queue.fill_(float("nan"))
        results.append(torch.autograd.grad(lse.sum() + (pair.sum() if pair_offset else 0), x)[0])
    assert torch.equal(*results)


def test_frozen_rows_with_nothing_to_sum():
    x = torch.randn(3, 4, requires_grad=True)
    lse, _ = similarity_lse(x, torch.randn(1, 4), 2.0, self_offset=0)
    assert (lse == float("-inf")).all()
    (d_x,) = torch.autograd.grad(lse.sum(), x)
    assert not d_x.any()


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_served_in_float64(form):
    x, y, options, upstream = inputs(form, torch.float64)
    for scale in (3.0, 70.0):
        s = torch.tensor(scale, dtype=torch.float64)
        with fastssl.use_backend("native"):
            mine, d_mine = gradients(x, y, s, options, upstream)
        with fastssl.use_backend("reference"):
            right, d_right = gradients(x, y, s, options, upstream)
        for a, b in zip((*mine, *d_mine), (*right, *d_right), strict=True):
            assert relative(a, b) < 1e-11
        if y is not None:  # frozen columns too
            with fastssl.use_backend("native"):
                d_frozen = gradients(x, y, s, options, upstream, (True, False, False))[1]
            assert relative(d_frozen[0], d_right[0]) < 1e-11


@pytest.mark.parametrize("form", ["shard", "symmetric pairs"])
def test_only_what_is_needed(form):
    x, y, options, upstream = inputs(form)
    s = torch.tensor(3.0)
    _, complete = gradients(x, y, s, options, upstream)
    names = [n for n, t in (("x", x), ("y", y), ("s", s)) if t is not None]
    complete = dict(zip(names, complete, strict=True))
    for needs in itertools.product([True, False], repeat=3):
        wanted = [n for n, need in zip(("x", "y", "s"), needs, strict=True) if need and n in names]
        if not wanted:
            continue
        _, some = gradients(x, y, s, options, upstream, needs)
        for name, gradient in zip(wanted, some, strict=True):
            torch.testing.assert_close(gradient, complete[name], rtol=1e-5, atol=1e-6)


def test_scale_as_number_and_tensor_agree():
    x, y, options, _ = inputs("shard")
    for scale in (2.0, 150.0):
        number = similarity_lse(x, y, scale, **options)
        tensor = similarity_lse(x, y, torch.tensor(scale), **options)
        assert all(torch.equal(a, b) for a, b in zip(number, tensor, strict=True))


def test_symmetric_is_the_general_case():
    x, _, options, upstream = inputs("symmetric pairs", d=64)
    s = torch.tensor(4.0)
    one, (d_one, ds_one) = gradients(x, None, s, options, upstream)
    two, (d_x, d_y, ds_two) = gradients(x, x.clone(), s, options, upstream)
    for a, b in zip(one, two, strict=True):
        assert relative(a, b) < 1e-6
    assert relative(d_one, d_x + d_y) < 1e-5
    assert relative(ds_one, ds_two) < 1e-5


def test_strides_do_not_matter():
    x, y, options, upstream = inputs("cosine", d=24)
    plain = gradients(x, y, torch.tensor(5.0), options, upstream)
    strided = gradients(
        x.T.contiguous().T, torch.cat([y, y], 1)[:, :24], torch.tensor(5.0), options, upstream
    )
    expanded = gradients(x, y, torch.ones(3).expand(3)[0] * 5, options, upstream.flip(0).flip(0))
    for other in (strided, expanded):
        for a, b in zip((*plain[0], *plain[1]), (*other[0], *other[1]), strict=True):
            assert torch.equal(a, b)


def test_rows_with_nothing_to_sum():
    x = torch.randn(3, 4, requires_grad=True)
    y = torch.randn(1, 4, requires_grad=True)
    for backend in ("native", "reference"):
        with fastssl.use_backend(backend):
            lse, pair = similarity_lse(x, y, self_offset=0, pair_offset=0)
            assert (lse == float("-inf")).all()
            for gradient in torch.autograd.grad(lse.sum() + 0 * pair.sum(), (x, y)):
                assert not gradient.isnan().any()
                assert not gradient.any()


@pytest.mark.parametrize("m", [40, 600])
def test_rectangles_are_bitwise_the_same_at_any_number_of_threads(m):
    x, y = torch.randn(m, 40), torch.randn(1900, 40)
    upstream = torch.randn(m, dtype=torch.float64)
    d_columns = torch.randn(1900, dtype=torch.float64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for scale in (2.0, 100.0):
                options = (scale, True, None, 3, True)
                lse, pair, column_lse, _ = raw.similarity_lse_fwd(x, y, None, *options, True, False)
                d_x, d_y, _ = raw.similarity_lse_bwd(
                    upstream, upstream, d_columns, x, y, None, lse, column_lse, *options,
                    True, True, False,
                )  # fmt: skip
                _, _, _, mean = raw.similarity_lse_fwd(x, y, None, *options, False, True)
                results.append((lse, pair, column_lse, d_x, d_y, mean))
    finally:
        torch.set_num_threads(before)
    for other in range(2, len(results)):
        assert all(map(torch.equal, results[other % 2], results[other]))


@pytest.mark.parametrize("n", [33, 300, 1700])
def test_bitwise_the_same_at_any_number_of_threads(n):
    x = torch.randn(n, 40)
    upstream = torch.randn(n, dtype=torch.float64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            for scale in (2.0, 100.0):
                options = (scale, True, 0, n // 2 if n % 2 == 0 else None, n % 2 == 0)
                lse, pair, *_ = raw.similarity_lse_fwd(x, None, None, *options, False, False)
                d_x, _, _ = raw.similarity_lse_bwd(
                    upstream, upstream, None, x, None, None, lse, None, *options, True, False, False
                )
                results.append((scale, lse, pair, d_x))
    finally:
        torch.set_num_threads(before)
    for scale in (2.0, 100.0):
        first, *others = (r[1:] for r in results if r[0] == scale)
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("scale", [1.0, 100.0, torch.tensor(float("nan"))], ids=str)
def test_nothing_finite_from_nan(scale):
    bad = not isinstance(scale, float)
    for value in (float("nan"), float("inf"), float("-inf")):
        x = torch.randn(70, 5)
        if not bad:
            x[69, 4] = value
        x.requires_grad_()
        lse, pair = similarity_lse(x, None, scale, self_offset=0, pair_offset=35)
        assert lse.isnan().all()
        (d_x,) = torch.autograd.grad((lse, pair), x, (torch.ones_like(lse), torch.ones_like(pair)))
        assert d_x.isnan().all()
    y = torch.randn(4, 5)
    y[0, 0] = float("nan")
    assert similarity_lse(torch.randn(3, 5), y)[0].isnan().all()
    for normalize in (True, False):
        rows = torch.randn(3, 5, requires_grad=True)
        lse, _ = similarity_lse(rows, y, scale, normalize=normalize)
        lse.sum().backward()
        assert lse.isnan().all()
        assert rows.grad.isnan().all()


def test_upstream_of_any_size():
    """Loss scaling multiplies gradients and nothing else; NaN upstream gives NaN."""
    x, _, options, upstream = inputs("symmetric pairs")
    _, (d_x,) = gradients(x, None, 2.0 * torch.ones(()), options, upstream, (True, False, False))
    for factor in (2.0**-40, 2.0**40):
        _, (scaled,) = gradients(
            x, None, 2.0 * torch.ones(()), options, upstream * factor, (True, False, False)
        )
        assert relative(scaled.double() / factor, d_x) < 1e-6
    upstream[0, 0] = float("nan")
    _, (d_x,) = gradients(x, None, torch.ones(()), options, upstream, (True, False, False))
    assert d_x.isnan().all()


@pytest.mark.parametrize("form", ["shard", "symmetric pairs", "plain"])
def test_opcheck(form):
    x, y, options, upstream = inputs(form)
    order = ("normalize", "self_offset", "pair_offset", "exclude_pair")
    flat = [options.get(k, False if k in ("normalize", "exclude_pair") else None) for k in order]
    for scale in (None, torch.tensor(0.7)):
        torch.library.opcheck(raw.similarity_lse_fwd, (x, y, scale, 2.0, *flat, False, False))
        if y is not None:
            for mode in ((True, False), (False, True)):
                torch.library.opcheck(raw.similarity_lse_fwd, (x, y, scale, 2.0, *flat, *mode))
        lse = raw.similarity_lse_fwd(x, y, scale, 2.0, *flat, False, False)[0]
        needs = (True, y is not None, scale is not None)
        torch.library.opcheck(
            raw.similarity_lse_bwd, (*upstream, None, x, y, scale, lse, None, 2.0, *flat, *needs)
        )


def test_reference_serves_the_raw_op_where_no_kernel_does():
    """Devices without a kernel reach the composite fallback; float64 reaches it through it."""
    from fastssl.ops.similarity_lse import _reference_bwd, _reference_fwd

    x, y, _, upstream = inputs("shard")
    options = (2.0, True, 24, 72, True)
    lse, pair, *_ = _reference_fwd(x, y, torch.tensor(1.5), *options, False, False)
    native = raw.similarity_lse_fwd(x, y, torch.tensor(1.5), *options, False, False)
    assert relative(native[0], lse) < 1e-6
    assert relative(native[1], pair) < 1e-6
    needs = (True, True, True)
    mine = raw.similarity_lse_bwd(
        *upstream, None, x, y, torch.tensor(1.5), lse, None, *options, *needs
    )
    right = _reference_bwd(*upstream, None, x, y, torch.tensor(1.5), lse, None, *options, *needs)
    for a, b in zip(mine, right, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(x=torch.ones(3, 4, dtype=torch.int32)), TypeError, "x must be a float32"),
        (dict(x=torch.ones(3)), ValueError, r"x must have shape \[rows, features\]"),
        (dict(y=torch.ones(0, 4)), ValueError, r"y must have shape"),
        (dict(y=torch.ones(2, 5)), ValueError, "width of x, 4, not 5"),
        (dict(y=torch.ones(2, 4).half()), TypeError, "dtype of x"),
        (dict(y=torch.ones(2, 4, device="meta")), ValueError, "device of x"),
        (dict(scale=torch.ones(1)), ValueError, "0-dim"),
        (dict(self_offset=3), ValueError, r"\[0, 3\), not 3"),
        (dict(pair_offset=-1), ValueError, "not -1"),
        (dict(exclude_pair=True), ValueError, "needs a pair_offset"),
        (dict(self_offset=1), ValueError, "pass y=x"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        similarity_lse(**(dict(x=torch.randn(3, 4)) | change))


def test_second_derivatives_are_refused():
    x = torch.randn(4, 3, requires_grad=True)
    (d_x,) = torch.autograd.grad(similarity_lse(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()
