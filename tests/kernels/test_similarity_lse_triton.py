"""``similarity_lse`` by Triton against the reference in float64: under the interpreter, or on CUDA.

The tiles that are shipped are far larger than what the interpreter can take many of, so most
cases use small ones: several blocks, segments and splits, ragged at every edge.
"""

from __future__ import annotations

import fastssl_kernels.similarity_lse as kernels
import fastssl_kernels.similarity_lse_plan as plan
import pytest
import torch

import fastssl
from fastssl import reference
from fastssl.functional import nt_xent
from fastssl.ops import similarity_lse, similarity_lse_both
from tests.cases import KINDS, views
from tests.numerics import GRADIENT, LOSS, UNIT, gradient_terms

# The interpreter's log(0), and 1/0 where it computes both sides of a choice.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
SCALES = pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
NT_XENT = {"self_offset": 0, "exclude_pair": True}
# What float32 leaves of gradients whose terms cancel, as a part of the terms.
CANCELLED = 1e-7


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip; the triangle's in proportion."""
    tiles = {
        key: plan.Tiles(16, 16 * max(1, old.block_n // old.block_m), 4, 2, old.step and 32)
        for key, old in plan.TILES["hopper"].items()
    }
    monkeypatch.setattr(plan, "TILES", {"hopper": tiles, "small": tiles})


def rows(m, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * m + d + seed)
    return torch.randn(m, d, generator=generator).to(DEVICE, dtype)


def scalar(value=5.0):
    return torch.tensor(value, device=DEVICE)


def run(backend, x, y, scale, upstream, needs, columns, **options):
    """lse, pair, column_lse, and the gradients that are needed (None for the others)."""
    leaves = [
        t.detach().clone().requires_grad_(need) if isinstance(t, torch.Tensor) else t
        for t, need in zip((x, y, scale), needs, strict=True)
    ]
    with fastssl.use_backend(backend):
        sums = (similarity_lse_both if columns else similarity_lse)(*leaves, **options)
        # A sum of nothing is −inf and has no gradient.
        finite = [torch.where(one.isinf(), 0.0, one) for one in sums]
        sum((one * d).sum() for one, d in zip(finite, upstream, strict=True)).backward()
    gradients = [t.grad if isinstance(t, torch.Tensor) else None for t in leaves]
    return [t.detach() for t in sums], gradients


def term_sizes(x, y, scale, upstream, normalize=False, **options):
    """Sizes of the terms that the gradients of x, y and scale are sums of; inputs in float64."""
    others = x if y is None else y
    inverse, other_inverse = (
        reference.inverse_norms(t) if normalize else torch.ones_like(t[:, :1]) for t in (x, others)
    )
    x, others, scale = x * inverse, others * other_inverse, float(scale)
    similarity = (x @ others.T).requires_grad_()  # [M, K]
    # The op of given similarities: rows of the identity choose them.
    identity = torch.eye(len(others), dtype=x.dtype, device=x.device)
    sums = reference.similarity_lse_both(similarity, identity, scale, **options)
    sums = [torch.where(one.isinf(), 0.0, one) for one in sums]
    total = sum((one * d.abs()).sum() for one, d in zip(sums, upstream, strict=False))
    (weights,) = torch.autograd.grad(total, similarity)  # [M, K]
    d_x = weights @ others.norm(dim=1, keepdim=True) * inverse
    d_y = weights.T @ x.norm(dim=1, keepdim=True) * other_inverse
    d_scale = (weights * similarity.abs()).sum() / scale
    return (d_x, d_y, d_scale) if y is not None else (d_x + d_y, None, d_scale)


def check(x, y, scale, needs=(True, True, True), columns=False, exact=True, **options):
    """exact: by a device that takes float32's large logits in float64."""
    m, k = len(x), len(x if y is None else y)
    upstream = [torch.randn(n, dtype=torch.float64, device=x.device) for n in (m, m, k)]
    upstream = upstream[: 3 if columns else 2]
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (x, y, scale)]
    got, mine = run("triton", x, y, scale, upstream, needs, columns, **options)
    want, right = run("reference", *wide, upstream, needs, columns, **options)
    exact = exact and x.dtype == torch.float32
    unit = 0.0  # what a logit is uncertain by
    if not exact:
        longest = [t.double().norm(dim=1).max().item() for t in (x, x if y is None else y)]
        similar = 1.0 if options.get("normalize") else longest[0] * longest[1]
        unit = UNIT * abs(float(scale)) * similar
    for name, one, other in zip(("lse", "pair", "column_lse"), got, want, strict=False):
        torch.testing.assert_close(
            one, other, rtol=LOSS, atol=max(LOSS, unit), msg=lambda m, n=name: f"{n}: {m}"
        )
    if exact:
        torch.testing.assert_close(got[1], want[1], rtol=1e-12, atol=1e-12)
    sizes = term_sizes(*wide, upstream, **options)
    inputs = zip("xys", mine, right, (x, y, scale), sizes, strict=True)
    for name, one, other, like, size in inputs:
        if other is None:
            assert one is None
            continue
        assert one.dtype == like.dtype
        assert one.shape == like.shape
        most = GRADIENT[x.dtype]
        cancelled = CANCELLED + unit
        if name == "s" and needs[1]:
            most = max(1e-5, 1e-2 * most)  # nothing of it was rounded to the dtype of x
        elif name == "s":
            cancelled += most / (m * k) ** 0.5  # it comes from a mean of so many rounded weights
        bound = most * other.norm() + cancelled * size.norm() + 1e-37
        error = (one.double() - other).norm()
        assert error <= bound, f"d_{name}: {error:.1e} of {other.norm():.1e}, {error / bound:.2f}"


OPTIONS = {
    "plain": (40, None, {}),
    "self": (40, None, {"self_offset": 0}),
    "half": (40, None, {"self_offset": 20}),
    "nt_xent": (62, None, {**NT_XENT, "pair_offset": 31}),
    "odd pair": (35, None, {"self_offset": 0, "pair_offset": 17}),
    "columns, self": (37, 50, {"self_offset": 45}),
    "columns, pair": (37, 50, {"pair_offset": 20}),
    "few columns": (50, 7, {"self_offset": 3, "pair_offset": 5, "exclude_pair": True}),
    "many columns": (5, 90, {"self_offset": 2, "pair_offset": 88, "exclude_pair": True}),
    "one column": (20, 1, {"pair_offset": 0}),
    "nothing left": (3, 2, {"self_offset": 0, "pair_offset": 1, "exclude_pair": True}),
}
MODES = pytest.mark.parametrize("mode", ["bounded", "large", "tensor", "products"])
RECTANGLES = pytest.mark.parametrize(
    "case", ["columns, self", "few columns", "many columns", "nothing left"]
)
FORMS = pytest.mark.parametrize("form", ["symmetric", "rectangle", "columns", "frozen"])


def inputs(case, mode, dtype=torch.float32, d=20):
    m, k, options = OPTIONS[case]
    y = None if k is None else rows(k, d, dtype, seed=1)
    scale = {"bounded": 7.0, "large": 120.0}.get(mode, scalar(3.0))
    return (rows(m, d, dtype), y, scale), {"normalize": mode != "products", **options}


@pytest.mark.usefixtures("small")
@MODES
@pytest.mark.parametrize("case", [c for c in OPTIONS if c not in RECTANGLES.args[1]])
def test_every_mode(case, mode):
    tensors, options = inputs(case, mode)
    check(*tensors, **options)


@pytest.mark.usefixtures("small")
@MODES
@RECTANGLES
def test_columns(case, mode):
    tensors, options = inputs(case, mode)
    check(*tensors, columns=True, **options)


@pytest.mark.usefixtures("small")
@MODES
@RECTANGLES
def test_a_frozen_side(case, mode):
    """The forward gives the mean column that the gradient is made of."""
    tensors, options = inputs(case, mode)
    check(*tensors, needs=(True, False, True), **options)


@pytest.mark.usefixtures("small")
@HALVES
@FORMS
@SCALES
def test_every_dtype(form, scale, dtype):
    y = None if form == "symmetric" else rows(35, 24, dtype, seed=1)
    check_form(form, rows(30, 24, dtype), y, scale, pair_offset=15, self_offset=0)


def check_form(form, x, y, scale, **options):
    options = {"normalize": True, "exclude_pair": form == "symmetric", **options}
    needs = (True, form != "frozen", True)
    check(x, y, scale or scalar(), needs, columns=form == "columns", **options)


@pytest.mark.usefixtures("small")
@SCALES
@pytest.mark.parametrize(
    ("m", "d"), [(1, 5), (2, 1), (3, 3), (16, 16), (31, 64), (18, 160), (17, 300), (20, 129)]
)
def test_every_size(m, d, scale):
    check(rows(m, d), None, scale or scalar(), normalize=True, self_offset=0)


@pytest.mark.usefixtures("small")
@DTYPES
@pytest.mark.parametrize("form", ["columns", "frozen"])
def test_wide_vectors(form, dtype):
    check_form(form, rows(18, 260, dtype), rows(17, 260, dtype, seed=1), None)


@DTYPES
@SCALES
@pytest.mark.parametrize("form", ["symmetric", "columns", "frozen"])
def test_shipped_tiles(form, scale, dtype):
    y = None if form == "symmetric" else rows(131, 40, dtype, seed=1)
    check_form(form, rows(70, 40, dtype), y, scale, pair_offset=35, self_offset=0)


@pytest.mark.usefixtures("small")
@FORMS
def test_float32_where_float64_is_slow(form, monkeypatch):
    device = plan._device(rows(1, 1))._replace(doubles=False)
    monkeypatch.setattr(plan, "_device", lambda x: device)
    y = None if form == "symmetric" else rows(40, 12, seed=1)
    check_form(form, rows(30, 12), y, scalar(30.0), exact=False, pair_offset=15)


@pytest.mark.parametrize(
    ("temperature", "learned"), [(0.005, True), (0.5, True), (0.07, False)], ids=str
)
@pytest.mark.parametrize("kind", [*KINDS, "collapsed", "zeros"])
def test_nt_xent_keeps_its_digits(kind, temperature, learned):
    """float32 at any temperature, and similarities in the hundreds."""
    # Equal terms are rounded alike, so that their errors add up.
    cancelled = (3 if kind == "collapsed" else 1) * CANCELLED
    for n, d, normalize in ((3, 1, True), (20, 40, True), (20, 40, False)):
        if kind in KINDS:
            z0, z1 = views(kind, n, d)
        else:
            z0 = z1 = rows(1, d).cpu().expand(n, d) * (kind == "collapsed")
        z0, z1 = (z.to(DEVICE) * (1 if normalize else 4) for z in (z0, z1))
        results = []
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            t = torch.tensor(temperature, dtype=torch.float32, device=DEVICE).to(dtype)
            leaves = [z.to(dtype).requires_grad_() for z in (z0.clone(), z1.clone())]
            leaves += [t.requires_grad_()] if learned else []
            with fastssl.use_backend(backend):
                loss = nt_xent(*leaves[:2], t if learned else temperature, normalize=normalize)
            results.append((loss.double(), torch.autograd.grad(loss, leaves)))
        (loss, gradients), (want, right) = results
        torch.testing.assert_close(loss, want, rtol=LOSS, atol=1e-37)
        ones = torch.full((2 * n,), 0.5 / n, device=DEVICE)
        with torch.device(DEVICE):
            sizes = gradient_terms(z0, z1, temperature, ones, normalize)
        for one, other, size in zip(gradients, right, sizes, strict=False):
            bound = 1e-5 * other.norm() + cancelled * size.norm() + 1e-37 * one.numel() ** 0.5
            assert (one.double() - other).norm() <= bound


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)], ids=str
)
@pytest.mark.parametrize("form", ["symmetric", "rectangle", "columns"])
def test_gradients_that_are_needed(needs, form):
    needs = tuple(bool(n) for n in needs)
    if form == "symmetric" and not (needs[0] or needs[2]):
        pytest.skip("y is None")
    y = None if form == "symmetric" else rows(30, 8, seed=1)
    check(
        rows(20, 8), y, scalar(4.0), needs, columns=form == "columns", normalize=True,
        pair_offset=3,
    )  # fmt: skip


@pytest.mark.usefixtures("small")
def test_not_contiguous():
    x = torch.stack([rows(20, 9), rows(20, 9, seed=1)], 2)[:, :, 0]
    y = rows(9, 26, seed=2).T
    assert not x.is_contiguous()
    check(x, y, 4.0, normalize=True, pair_offset=1)


@pytest.mark.usefixtures("small")
@SCALES
def test_groups_of_very_many_rows(scale, monkeypatch):
    """Buffers too small for all distances, or for all rows, at once."""
    monkeypatch.setattr(kernels, "ROW_SUMS_BYTES", 2 * 4 * 100)
    monkeypatch.setattr(kernels, "SPLITS_BYTES", 32 * 4 * 12)
    scale, y = scale or scalar(), rows(40, 12, seed=1)
    check(rows(100, 12), None, scale, normalize=True, **NT_XENT, pair_offset=50)
    for form in ("columns", "frozen"):
        check_form(form, rows(70, 12), y, scale, pair_offset=2, self_offset=5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("normalize", [True, False])
@SCALES
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_shows(value, scale, normalize):
    scale = scale or scalar()
    x, y = rows(20, 12), rows(17, 12, seed=1).requires_grad_()
    x[13, 5] = value
    x = x.requires_grad_()
    with fastssl.use_backend("triton"):
        lse, pair = similarity_lse(
            x, None, scale, normalize=normalize, self_offset=0, pair_offset=10
        )
        assert lse.isnan().all()
        assert pair[[3, 13]].isnan().all()
        assert torch.autograd.grad(lse.sum(), x)[0].isnan().all()
        lse, _, column_lse = similarity_lse_both(y, x, scale, normalize=normalize)
        assert lse.isnan().all()
        assert column_lse.isnan().tolist() == [i == 13 for i in range(20)]
        assert torch.autograd.grad(lse.sum() + column_lse.sum(), y)[0].isnan().all()
        lse, _ = similarity_lse(y, x.detach(), scale, normalize=normalize)
        assert lse.isnan().all()
        assert torch.autograd.grad(lse.sum(), y)[0].isnan().all()


@pytest.mark.usefixtures("small")
def test_nan_scale_shows():
    x, scale = rows(20, 12).requires_grad_(), scalar(float("nan"))
    with fastssl.use_backend("triton"):
        lse, pair = similarity_lse(x, None, scale.requires_grad_(), normalize=True, pair_offset=3)
        (lse + pair).sum().backward()
    for t in (lse, pair, x.grad, scale.grad):
        assert t.isnan().all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [1e-15, 1e-9, 1e9, 1e15])
@pytest.mark.parametrize("frozen", [False, True])
def test_any_length(size, frozen):
    """Norms below 1e-12 have no direction; all others only turn."""
    x = rows(40, 12)
    x[3] *= size
    check(x, x.clone() if frozen else None, 10.0, (True, not frozen, True), normalize=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("upstream", [1e-9, 1e6])
def test_float16_gradients_keep_their_range(upstream):
    """G has entries far below what float16 can hold, and far above."""
    x = 8 * rows(40, 12, torch.float16)
    scaled = torch.full((2, 40), upstream, dtype=torch.float64, device=DEVICE)
    options = {"needs": (True,) * 3, "columns": False, "normalize": True, "self_offset": 0}
    (got, *_), (want, *_) = (
        run(backend, t, None, 5.0, scaled, **options)[1]
        for backend, t in (("triton", x), ("reference", x.double()))
    )
    want = want.to(torch.float16)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=want.abs().max().item() * 1e-3 + 6e-8)


@pytest.mark.usefixtures("small")
def test_float16_weights_of_a_mean_keep_their_range():
    """Columns as short as float16 has them, and others whose weights are 2^-14 of the largest."""
    x, y = rows(20, 12, torch.float16), rows(90, 12, torch.float16, seed=1)
    y[3] *= 1e-4
    check(x, y, 5.0, (True, False, True), normalize=True)
    check(x, y, scalar(40.0), (True, False, True), normalize=True)


@pytest.mark.parametrize(("size", "learned"), [(60.0, True), (140.0, True), (700.0, False)])
def test_rows_and_columns_unlike_all_others(small, monkeypatch, size, learned):
    """Their powers are too small for float32 where those of the others are not too large."""
    monkeypatch.setattr(kernels, "ROW_SUMS_BYTES", 4 * 70 * 2)  # two blocks of columns at a time
    common = rows(1, 20)
    x, y = common + 0.3 * rows(70, 20), common + 0.3 * rows(80, 20, seed=1)
    x[3], y[7] = -common[0], -common[0]
    x, y, scale = x.bfloat16(), y.bfloat16(), scalar(size) if learned else size
    needs = (True, True, learned)
    check(x, y, scale, needs, columns=True, normalize=True, self_offset=4)


def test_two_sums_of_unit_vectors_without_anything(small):
    x, y = rows(2, 20, torch.bfloat16), rows(3, 20, torch.bfloat16, seed=1)
    check(x, y, scalar(), columns=True, normalize=True, self_offset=0, pair_offset=1)
    only = {"self_offset": 0, "pair_offset": 1, "exclude_pair": True}
    check(x, y[:2], scalar(200.0), columns=True, normalize=True, **only)
