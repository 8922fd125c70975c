"""``similarity_softplus`` by Triton against float64: under the interpreter, or on CUDA.

Most cases use small tiles, as in test_similarity_lse_triton.py.
"""

from __future__ import annotations

import fastssl_kernels.similarity_lse as shared
import fastssl_kernels.similarity_lse_plan as plan
import pytest
import torch

import fastssl
from fastssl.functional import siglip_loss
from fastssl.ops import similarity_softplus
from tests.numerics import GRADIENT

# The interpreter computes both sides of a where, so 1/0 of a zero row's norm.
pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip."""
    shipped = plan.TILES["hopper"]
    tiles = {key: plan.Tiles(16, 16, 4, 2, old.step and 32) for key, old in shipped.items()}
    monkeypatch.setattr(plan, "TILES", {"hopper": tiles, "small": tiles})


def rows(m, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * m + d + seed)
    return torch.randn(m, d, generator=generator).to(DEVICE, dtype)


def scalar(value):
    return torch.tensor(value, device=DEVICE)


def run(backend, tensors, upstream, needs, **options):
    """total, pair and the gradients that are needed (None for the others)."""
    leaves = [
        t.detach().clone().requires_grad_(need) if isinstance(t, torch.Tensor) else t
        for t, need in zip(tensors, needs, strict=True)
    ]
    with fastssl.use_backend(backend):
        total, pair = similarity_softplus(*leaves, **options)
        ((total * upstream[0]).sum() + (pair * upstream[1]).sum()).backward()
    gradients = [t.grad if isinstance(t, torch.Tensor) else None for t in leaves]
    return total.detach(), pair.detach(), *gradients


def check(x, y, scale=10.0, bias=-10.0, needs=(True, True, True, True), **options):
    upstream = torch.randn(2, len(x), dtype=torch.float64, device=x.device)
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (x, y, scale, bias)]
    got = run("triton", (x, y, scale, bias), upstream, needs, **options)
    want = run("reference", wide, upstream, needs, **options)
    # A logit in float32 is uncertain by its terms' roundings, and a small term by as much.
    longest = [t.double().norm(dim=1).max().item() for t in (x, y)]
    largest = 1.0 if options.get("normalize") else longest[0] * longest[1]
    logit = 2.0**-23 * (abs(float(scale)) * largest + abs(float(bias)))
    torch.testing.assert_close(got[0], want[0], rtol=1e-6 + logit, atol=1e-37)
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=logit)
    for name, one, other, like in zip("xysb", got[2:], want[2:], (x, y, scale, bias), strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == like.dtype
        assert one.shape == like.shape
        error, size = (one.double() - other).norm().item(), other.norm().item()
        most = (GRADIENT[x.dtype] if name in "xy" else 1e-5) + logit
        # Terms as large as scale · upstream may cancel down to nothing.
        least = (2.0**-22 + logit) * max(1.0, abs(float(scale))) * upstream.norm().item()
        assert error <= most * size + least, f"d_{name}: {error / max(size, 1e-30):.1e}"


FORMS = {
    "plain": (37, 50, {}),
    "pair": (37, 50, {"pair_offset": 20}),
    "square": (64, 64, {"pair_offset": 0, "exclude_pair": True}),
    "few columns": (50, 7, {"pair_offset": 5, "exclude_pair": True}),
    "many columns": (5, 90, {"pair_offset": 88, "exclude_pair": True}),
    "one column": (20, 1, {"pair_offset": 0, "exclude_pair": True}),
    "one row": (1, 33, {"pair_offset": 32}),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("normalize", "scalars"), [(True, (10.0, -10.0)), (False, (3.0, 2.0))], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_every_form(form, normalize, scalars):
    m, k, options = FORMS[form]
    x, y = rows(m, 20), rows(k, 20, seed=1)
    check(x, y, *map(scalar, scalars), normalize=normalize, **options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", FORMS)
def test_numbers_for_scalars(form):
    m, k, options = FORMS[form]
    check(rows(m, 20), rows(k, 20, seed=1), 7.0, -5.0, normalize=True, **options)


@pytest.mark.usefixtures("small")
@DTYPES
@pytest.mark.parametrize("form", ["square", "pair"])
def test_every_dtype(form, dtype):
    m, k, options = FORMS[form]
    x, y = rows(m, 24, dtype), rows(k, 24, dtype, seed=1)
    check(x, y, scalar(10.0), scalar(-10.0), normalize=True, **options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("m", "k", "d"), [(1, 1, 5), (2, 3, 1), (16, 16, 16), (31, 17, 64), (17, 20, 300)]
)
def test_every_size(m, k, d):
    check(rows(m, d), rows(k, d, seed=1), scalar(5.0), scalar(-3.0), normalize=True, pair_offset=0)


@DTYPES
def test_shipped_tiles(dtype):
    x, y = rows(130, 128, dtype), rows(257, 128, dtype, seed=1)
    check(x, y, scalar(10.0), scalar(-10.0), normalize=True, pair_offset=3, exclude_pair=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("bias", [-80.0, -30.0, 30.0])
def test_small_terms_keep_their_digits(bias):
    """softplus(−30) is 9e-14: log(1 + e^t) as it stands would give 0."""
    x, y = rows(20, 12), rows(40, 12, seed=1)
    check(x, y, scalar(2.0), scalar(bias), normalize=True)
    upstream = torch.ones(2, 20, dtype=torch.float64, device=DEVICE)
    tensors = (x, y, scalar(2.0), scalar(bias))
    got = run("triton", tensors, upstream, (True,) * 4, normalize=True)
    want = run("reference", [t.double() for t in tensors], upstream, (True,) * 4, normalize=True)
    for one, other in zip((got[2], got[5]), (want[2], want[5]), strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "needs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, 1)]
)
def test_gradients_that_are_needed(needs):
    needs = tuple(bool(n) for n in needs)
    x, y = rows(20, 8), rows(30, 8, seed=1)
    check(x, y, scalar(4.0), scalar(-2.0), needs, normalize=True, pair_offset=3)


@pytest.mark.usefixtures("small")
def test_not_contiguous():
    x = torch.stack([rows(20, 9), rows(20, 9, seed=1)], 2)[:, :, 0]
    y = rows(9, 26, seed=2).T
    assert not x.is_contiguous()
    check(x, y, scalar(4.0), -1.0, normalize=True, pair_offset=1)


@pytest.mark.usefixtures("small")
def test_groups_of_very_many_rows(monkeypatch):
    """A buffer too small for the gradients of all rows at once."""
    monkeypatch.setattr(shared, "SPLITS_BYTES", 32 * 4 * 12)
    x, y = rows(70, 12), rows(40, 12, seed=1)
    check(x, y, scalar(5.0), scalar(-3.0), normalize=True, pair_offset=2, exclude_pair=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_shows(value, normalize):
    x, y, scale, bias = rows(40, 12), rows(20, 12, seed=1), scalar(5.0), scalar(-3.0)
    x[33, 5] = value
    leaves = [t.requires_grad_() for t in (x, y, scale, bias)]
    with fastssl.use_backend("triton"):
        total, pair = similarity_softplus(*leaves, normalize=normalize, pair_offset=0)
        (total.sum() + pair.sum()).backward()
    assert total[33].isnan()
    assert pair[33].isnan()
    assert total.isfinite().sum() == 39
    assert x.grad[33].isnan().all()
    assert all(t.grad.isnan().all() for t in (y, scale, bias))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("which", [0, 1])
def test_nan_scalars_show(which):
    scalars = [scalar(5.0), scalar(-3.0)]
    scalars[which].fill_(float("nan"))
    leaves = [t.requires_grad_() for t in (rows(20, 12), rows(20, 12, seed=1), *scalars)]
    with fastssl.use_backend("triton"):
        total, pair = similarity_softplus(*leaves, normalize=True, pair_offset=3)
        (total + pair).sum().backward()
    assert total.isnan().all()
    assert pair.isnan().all()
    assert all(t.grad.isnan().all() for t in leaves[: 3 + which])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("upstream", [1e-9, 1e3])
def test_float16_gradients_keep_their_range(upstream):
    """G has entries far below what float16 can hold, and far above."""
    x, y = rows(40, 12, torch.float16), rows(30, 12, torch.float16, seed=1)
    scaled = torch.full((2, 40), upstream, dtype=torch.float64, device=DEVICE)
    needs = (True, True, False, False)
    got = run("triton", (x, y, 5.0, -4.0), scaled, needs, normalize=True)
    want = run("reference", (x.double(), y.double(), 5.0, -4.0), scaled, needs, normalize=True)
    for one, other in zip(got[2:4], want[2:4], strict=True):
        other = other.to(torch.float16)
        atol = other.abs().max().item() * 1e-3 + 6e-8
        torch.testing.assert_close(one, other, rtol=2e-3, atol=atol)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["collapsed", "opposite", "one zero"])
@pytest.mark.parametrize("scalars", [(10.0, -10.0), (118.0, -12.9)], ids=str)
def test_degenerate_siglip(kind, scalars):
    x = torch.nn.functional.normalize(rows(40, 24), dim=1)
    y = -x
    if kind == "collapsed":
        x = y = x[:1].expand(40, 24)
    elif kind == "one zero":
        x[3] = 0
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [t.detach().to(dtype).clone().requires_grad_() for t in (x, y)]
        with fastssl.use_backend(backend):
            loss = siglip_loss(*leaves, scalars[0], logit_bias=scalars[1])
            loss.backward()
        results.append((loss.double(), torch.stack([t.grad.double() for t in leaves])))
    (loss, gradient), (want_loss, want) = results
    logit = 2.0**-23 * (scalars[0] + abs(scalars[1]))
    torch.testing.assert_close(loss, want_loss, rtol=1e-6 + logit, atol=1e-7)
    assert (gradient - want).norm() <= (1e-5 + logit) * want.norm()
