"""similarity_softplus: every form of the op against the float64 reference, and torch's checks."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastssl
from fastssl import reference
from fastssl.ops import similarity_softplus
from tests.cases import WITH_ISAS
from tests.numerics import GRADIENT, relative

raw = torch.ops.fastssl
BACKENDS = ["native", "reference"]  # Triton: tests/kernels/test_similarity_softplus_triton.py

# (M, K, options). Offsets that wrap, pairs beyond the rows or met by several rows.
FORMS = {
    "plain": (37, 53, {}),
    "cosine": (37, 53, dict(normalize=True)),
    "one": (1, 1, dict(normalize=True, pair_offset=0)),
    "wide": (5, 211, dict(normalize=True, pair_offset=7)),
    "tall": (211, 5, dict(normalize=True, pair_offset=3, exclude_pair=True)),
    "square": (101, 101, dict(normalize=True, pair_offset=0, exclude_pair=True)),
    "shard": (24, 96, dict(normalize=True, pair_offset=72, exclude_pair=True)),
    "wrapping": (60, 64, dict(pair_offset=63, exclude_pair=True)),
}
SCALARS = [(10.0, -10.0), (3.0, 0.0), (-2.0, 5.0), (100.0, -30.0)]


def inputs(form, dtype=torch.float32, d=19, seed=0):
    m, k, options = FORMS[form]
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=generator).to(dtype) for n in (m, k))
    upstream = torch.randn(2, m, generator=generator, dtype=torch.float64)
    return x, y, options, upstream


def scalars(scale=10.0, bias=-10.0):
    return torch.tensor(scale), torch.tensor(bias)


def gradients(tensors, options, upstream, needs=(True, True, True, True)):
    """total and pair, and the gradients of x, y, scale and bias that are needed."""
    tensors = [t.detach().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
    outputs = similarity_softplus(*tensors, **options)
    wanted = [t for t in tensors if t.requires_grad]
    if options.get("pair_offset") is None:
        assert not outputs[1].any()
        return outputs, torch.autograd.grad(outputs[0], wanted, upstream[0])
    return outputs, torch.autograd.grad(outputs, wanted, tuple(upstream), allow_unused=True)


@pytest.mark.parametrize("scale_bias", SCALARS, ids=str)
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_is_the_reference(backend, form, dtype, scale_bias):
    x, y, options, upstream = inputs(form, dtype)
    s, b = scalars(*scale_bias)
    with fastssl.use_backend(backend):
        mine, d_mine = gradients((x, y, s, b), options, upstream)
    right, d_right = gradients([t.double() for t in (x, y, s, b)], options, upstream)
    # A logit in float32 is uncertain by its terms' roundings, and a small term by as much.
    terms = 1.0 if options.get("normalize") else x.double().norm(dim=1).max() ** 2
    logit = 2.0**-23 * (abs(s) * terms + abs(b)).item()
    for a, w in zip(mine, right, strict=True):
        assert a.dtype == torch.float64
        assert relative(a, w) < 1e-6 + logit
    for name, a, w, t in zip("xysb", d_mine, d_right, (x, y, s, b), strict=True):
        assert a.dtype == t.dtype
        assert a.shape == t.shape
        bound = GRADIENT[dtype] if name in "xy" else 1e-5
        # What cancels leaves the roundings of its terms: all upstream gradients together.
        floor = 2.0**-20 * upstream.abs().sum().item()
        assert (a.double() - w).norm() <= (bound + logit) * w.norm() + floor, name


@pytest.mark.parametrize("backend", WITH_ISAS)
@pytest.mark.parametrize("bias", [-80.0, -30.0, 0.0, 30.0])
def test_small_terms_keep_their_digits(backend, bias):
    """softplus(−30) is 9e-14: log(1 + e^t) as it stands would give 0."""
    x, y, _, upstream = inputs("plain")
    tensors = (x, y, *scalars(2.0, bias))
    with fastssl.use_backend(backend):
        mine, (d_x, _, _, d_bias) = gradients(tensors, dict(normalize=True), upstream)
    right, (want_x, _, _, want_bias) = gradients(
        [t.double() for t in tensors], dict(normalize=True), upstream
    )
    logit = 2.0**-23 * (2 + abs(bias))
    assert (mine[0] / right[0] - 1).abs().max() < 1e-6 + logit
    assert relative(d_x, want_x) < 1e-5
    assert relative(d_bias, want_bias) < 1e-5


def test_is_the_textbook_formula():
    x, y, _, _ = inputs("square")
    x, y = x.double(), y.double()
    total, pair = similarity_softplus(x, y, 0.7, -1.5, pair_offset=3, exclude_pair=True)
    logits = 0.7 * x @ y.T - 1.5
    i = torch.arange(101)
    torch.testing.assert_close(pair, logits[i, (i + 3) % 101])
    logits[i, (i + 3) % 101] = float("-inf")
    torch.testing.assert_close(total, torch.log(1 + torch.exp(logits)).sum(1))


@pytest.mark.parametrize("options", [{}, dict(normalize=True, pair_offset=2, exclude_pair=True)])
def test_reference_gradcheck(options):
    x, y = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    s, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, -0.5))
    assert torch.autograd.gradcheck(
        lambda *tensors: reference.similarity_softplus(*tensors, **options), (x, y, s, b)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_needed(backend):
    x, y, options, upstream = inputs("shard")
    tensors = (x, y, *scalars(3.0, -2.0))
    with fastssl.use_backend(backend):
        _, complete = gradients(tensors, options, upstream)
        for needs in itertools.product([True, False], repeat=4):
            if not any(needs):
                continue
            _, some = gradients(tensors, options, upstream, needs)
            wanted = [d for d, need in zip(complete, needs, strict=True) if need]
            for got, want in zip(some, wanted, strict=True):
                assert torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_as_numbers_and_tensors_agree(backend):
    x, y, options, _ = inputs("shard")
    with fastssl.use_backend(backend):
        numbers = similarity_softplus(x, y, 10.0, -8.0, **options)
        for s, b in ((torch.tensor(10.0), -8.0), (10, torch.tensor(-8.0)), scalars(10.0, -8.0)):
            tensors = similarity_softplus(x, y, s, b, **options)
            assert all(torch.equal(p, q) for p, q in zip(numbers, tensors, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    x, y, options, upstream = inputs("cosine", d=24)
    s, b = scalars()
    with fastssl.use_backend(backend):
        plain = gradients((x, y, s, b), options, upstream)
        strided = gradients(
            (x.T.contiguous().T, torch.cat([y, y], 1)[:, :24], s, b),
            options,
            upstream.T.contiguous().T,
        )
    for p, q in zip((*plain[0], *plain[1]), (*strided[0], *strided[1]), strict=True):
        assert relative(q, p) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_with_nothing_to_sum(backend):
    x, y = torch.randn(3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    with fastssl.use_backend(backend):
        total, _ = similarity_softplus(x, y, 1.0, b, pair_offset=0, exclude_pair=True)
        assert not total.any()
        for gradient in torch.autograd.grad(total.sum(), (x, y, b)):
            assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["x", "y", "scale", "bias"])
def test_nothing_finite_from_nan(backend, where):
    for value in (float("nan"), float("inf"), float("-inf")):
        tensors = dict(x=torch.randn(70, 5), y=torch.randn(33, 5), scale=torch.ones(()))
        tensors["bias"] = torch.zeros(())
        if where in ("x", "y"):
            tensors[where][32, 4] = value
        else:
            tensors[where].fill_(value)
        for t in tensors.values():
            t.requires_grad_()
        with fastssl.use_backend(backend):
            total, pair = similarity_softplus(**tensors, pair_offset=0)
            assert total[32].isnan()
            assert pair[32].isnan()
            assert where == "x" or total.isnan().all()
            (total.sum() + pair.sum()).backward()
        for name, t in tensors.items():
            own = t.grad[32] if name == where and t.dim() else t.grad
            assert own.isnan().all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_of_any_size(backend):
    """Loss scaling multiplies gradients and nothing else; NaN upstream gives NaN."""
    x, y, options, upstream = inputs("square")
    tensors = (x, y, *scalars(5.0, -3.0))
    with fastssl.use_backend(backend):
        _, plain = gradients(tensors, options, upstream)
        for factor in (2.0**-40, 2.0**40):
            _, scaled = gradients(tensors, options, upstream * factor)
            for got, want in zip(scaled, plain, strict=True):
                assert relative(got.double() / factor, want) < 1e-6
        upstream[0, 0] = float("nan")
        _, (d_x, d_y, *d_scalars) = gradients(tensors, options, upstream)
    assert d_x[0].isnan().all()
    assert all(d.isnan().any() for d in (d_y, *d_scalars))


@pytest.mark.instruction_sets
@pytest.mark.parametrize(("m", "k"), [(33, 20), (300, 700), (1700, 1000)])
def test_bitwise_the_same_at_any_number_of_threads(m, k):
    x, y = torch.randn(m, 40), torch.randn(k, 40)
    upstream = torch.randn(2, m, dtype=torch.float64)
    arguments = (x, y, *scalars(5.0, -3.0), 1.0, 0.0, True, k // 2, True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5, 2):
            torch.set_num_threads(threads)
            sums = raw.similarity_softplus_fwd(*arguments)
            results.append(
                (*sums, *raw.similarity_softplus_bwd(*upstream, *arguments, *[True] * 4))
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", ["shard", "plain"])
def test_opcheck(form):
    x, y, options, upstream = inputs(form)
    order = ("normalize", "pair_offset", "exclude_pair")
    flat = [options.get(k, None if k == "pair_offset" else False) for k in order]
    for s, b in ((None, None), scalars(0.7, -0.3), (None, torch.tensor(-0.5))):
        arguments = (x, y, s, b, 2.0, -1.0, *flat)
        torch.library.opcheck(raw.similarity_softplus_fwd, arguments)
        needs = (True, True, s is not None, b is not None)
        torch.library.opcheck(raw.similarity_softplus_bwd, (*upstream, *arguments, *needs))


def test_reference_serves_the_raw_op_where_no_kernel_does():
    from fastssl.ops.similarity_softplus import _reference_bwd, _reference_fwd

    x, y, _, upstream = inputs("shard")
    arguments = (x, y, *scalars(1.5, -1.0), 2.0, -3.0, True, 72, True)
    needs = (True, True, True, True)
    for mine, right in (
        (raw.similarity_softplus_fwd(*arguments), _reference_fwd(*arguments)),
        (
            raw.similarity_softplus_bwd(*upstream, *arguments, *needs),
            _reference_bwd(*upstream, *arguments, *needs),
        ),
    ):
        for a, w in zip(mine, right, strict=True):
            assert a.shape == w.shape
            assert a.dtype == w.dtype
            assert relative(a, w) < 1e-5


def test_compile_fullgraph_with_gradients():
    x, y, options, upstream = inputs("shard")
    s, b = (t.requires_grad_() for t in scalars())
    x, y = x.requires_grad_(), y.requires_grad_()

    def loss(rows):
        total, pair = similarity_softplus(x[:rows], y, s, b, **options)
        return ((total - pair) * upstream[0, :rows]).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (24, 17):
        traced, eager = compiled(rows), loss(rows)
        torch.testing.assert_close(traced, eager)
        for got, want in zip(
            *(torch.autograd.grad(value, (x, y, s, b)) for value in (traced, eager)), strict=True
        ):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(x=torch.ones(3, 4, dtype=torch.int32)), TypeError, "x must be a float32"),
        (dict(x=torch.ones(3)), ValueError, r"x must have shape \[rows, features\]"),
        (dict(y=None), TypeError, "y must be a tensor, not None"),
        (dict(y=torch.ones(0, 4)), ValueError, "y must have shape"),
        (dict(y=torch.ones(2, 5)), ValueError, "width of x, 4, not 5"),
        (dict(y=torch.ones(2, 4).half()), TypeError, "dtype of x"),
        (dict(y=torch.ones(2, 4, device="meta")), ValueError, "device of x"),
        (dict(scale=torch.ones(1)), ValueError, "scale must be a float or a 0-dim"),
        (dict(bias=torch.ones(1)), ValueError, "bias must be a float or a 0-dim"),
        (dict(bias=torch.ones((), device="meta")), ValueError, "bias must be on the device"),
        (dict(pair_offset=5), ValueError, r"\[0, 5\), not 5"),
        (dict(pair_offset=-1), ValueError, "not -1"),
        (dict(exclude_pair=True), ValueError, "needs a pair_offset"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        similarity_softplus(**(dict(x=torch.randn(3, 4), y=torch.randn(5, 4)) | change))


def test_second_derivatives_are_refused():
    from fastssl.ops.similarity_softplus import _SimilaritySoftplus

    x = torch.randn(4, 3, requires_grad=True)
    options = (1.0, 0.0, False, None, False)
    total, _ = _SimilaritySoftplus.apply(x, x.detach(), None, None, *options, "reference")
    (d_x,) = torch.autograd.grad(total.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()
