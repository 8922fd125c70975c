"""NT-Xent against the float64 reference on the same rounded inputs, and its manners."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import nt_xent
from tests.cases import KINDS, SHAPES, TEMPERATURES, views
from tests.numerics import (
    GRADIENT,
    LOSS,
    gradient_terms,
    loss_and_gradients,
    relative,
    truth,
)

BACKENDS = ["native", "reference"]  # Triton: tests/kernels and tests/gpu, by the same measure


def compare(z0, z1, temperature, backend, **options):
    """Mean loss and gradients within the published bounds; single rows too, but for what their own
    logits' rounding leaves of them.

    A gradient that vanishes because its terms cancel (duplicates, one feature, a collapse) is held
    to 1e-7 of their size instead, a rounding of float32.
    """
    upstream = torch.randn(2 * len(z0), generator=torch.Generator().manual_seed(1))
    ours = loss_and_gradients(z0, z1, temperature, backend, upstream, **options)
    true = truth(z0, z1, temperature, upstream, **options)
    underflow = 1e-37  # a loss, or a gradient, that is no normal float32
    error = (ours[0].double().mean() - true[0].mean()).abs()
    assert error <= LOSS * true[0].mean() + underflow, f"loss {true[0].mean():.2e}: {error:.2e} off"
    excess = (ours[0].double() - true[0]).abs() / (3 * LOSS * true[0] + underflow)
    assert excess.max() <= 1, f"a row's loss: {excess.max():.2f} of its bound"

    terms = gradient_terms(z0, z1, temperature, upstream, **options)
    for name, mine, right, size in zip(NAMES, ours[1:], true[1:], terms, strict=True):
        assert torch.isfinite(mine).all(), name
        error = (mine.double() - right).norm()
        bound = GRADIENT[z0.dtype] * right.norm() + tiny(z0.dtype) * mine.numel() ** 0.5
        bound = torch.maximum(bound, 1e-7 * size.norm())
        assert error <= bound, f"{name}: {error:.2e} above {bound:.2e}, size {right.norm():.2e}"


NAMES = ("z0", "z1", "temperature")


def tiny(dtype):
    """Below this a gradient of that dtype is no longer a normal number."""
    return max(torch.finfo(dtype).tiny, 1e-37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] > 20], ids=str)
def test_independent_views(shape, temperature, dtype):
    z0, z1 = (z.to(dtype) for z in views("independent", *shape))
    compare(z0, z1, temperature, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for shape in SHAPES:
        z0, z1 = (z.to(dtype) for z in views(kind, *shape))
        for temperature in TEMPERATURES:
            compare(z0, z1, temperature, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reference_in_low_precision(dtype):
    for kind in KINDS:
        z0, z1 = (z.to(dtype) for z in views(kind, 24, 16))
        compare(z0, z1, 0.07, "reference")


@pytest.mark.parametrize(
    ("n", "temperature"), [(257, 0.5), (1023, 0.07), (1023, 0.5), (2049, 0.07)]
)
def test_large_odd_batches(n, temperature):
    compare(*views("independent", n, 64), temperature, "native")


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_unnormalised_similarities_in_the_hundreds(backend, temperature):
    for kind in ("independent", "related", "with_zero"):
        z0, z1 = (4 * z for z in views(kind, 75, 40))
        compare(z0, z1, temperature, backend, normalize=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_collapsed_embeddings_give_log_and_no_gradient(backend):
    for n in (1, 2, 50):
        row = torch.randn(1, 24).repeat(n, 1)
        ones = torch.ones(2 * n)
        loss, d_z0, d_z1, d_t = loss_and_gradients(row, row.clone(), 0.1, backend, ones)
        expected = torch.full((2 * n,), math.log(2 * n - 1), dtype=torch.float64)
        torch.testing.assert_close(loss.double(), expected, rtol=LOSS, atol=1e-9)
        terms = gradient_terms(row, row, 0.1, ones)
        for gradient, size in zip((d_z0, d_z1, d_t), terms, strict=True):
            assert gradient.norm() <= 2e-7 * size.norm()  # equal terms, equal roundings


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_vectors_are_finite_and_receive_nothing(backend, dtype):
    z0, z1 = torch.randn(2, 6, 9).to(dtype).unbind()
    z0[2] = 0
    ones = torch.ones(12)
    loss, d_z0, d_z1, d_t = loss_and_gradients(z0, z1, 0.2, backend, ones)
    assert all(torch.isfinite(t).all() for t in (loss, d_z0, d_z1, d_t))
    assert not d_z0[2].any()


def test_is_the_textbook_formula():
    z0, z1 = (z.double() for z in views("related", 13, 7))
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    logits = (z @ z.T / 0.3).fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(logits, torch.arange(26).roll(13))
    torch.testing.assert_close(nt_xent(z0, z1, 0.3), expected)
    torch.testing.assert_close(nt_xent(z0.float(), z1.float(), 0.3).double(), expected)


def test_reference_gradcheck():
    z0, z1 = (z.double().requires_grad_() for z in views("independent", 5, 4))
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda a, b, c, normalize=normalize: nt_xent(a, b, c, normalize=normalize), (z0, z1, t)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions(backend):
    z0, z1 = views("independent", 9, 5)
    with fastssl.use_backend(backend):
        rows = nt_xent(z0, z1, 0.2, reduction="none")
        assert rows.shape == (18,)
        assert rows.dtype == torch.float32
        torch.testing.assert_close(nt_xent(z0, z1, 0.2, reduction="sum"), rows.sum())
        torch.testing.assert_close(nt_xent(z0, z1, 0.2), rows.mean())
        swapped = nt_xent(z1, z0, 0.2, reduction="none")
    torch.testing.assert_close(swapped, rows.roll(9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_visible(backend, bad):
    z0, z1 = views("independent", 6, 4)
    z1[3, 2] = bad
    loss = None
    z0.requires_grad_()
    with fastssl.use_backend(backend):
        loss = nt_xent(z0, z1)
        loss.backward()
    assert loss.isnan()
    assert z0.grad.isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(z1=torch.randn(3, 5)), ValueError, "one shape"),
        (dict(z1=torch.randn(4, 6)), ValueError, "one shape"),
        (dict(z0=torch.randn(4)), ValueError, "one shape"),
        (dict(z1=torch.randn(4, 5).bfloat16()), TypeError, "one dtype"),
        (dict(z0=torch.ones(4, 5, dtype=torch.long)), TypeError, "z0 must be a floating-point"),
        (dict(z0=[[1.0]]), TypeError, "not list"),
        (dict(z1=torch.randn(4, 5, device="meta")), ValueError, "one device"),
        (dict(z0=torch.randn(0, 5), z1=torch.randn(0, 5)), ValueError, "at least one row"),
        (dict(z0=torch.randn(4, 0), z1=torch.randn(4, 0)), ValueError, "at least one row"),
        (dict(temperature=0.0), ValueError, "positive and finite, not 0.0"),
        (dict(temperature=-1), ValueError, "positive and finite, not -1"),
        (dict(temperature=float("nan")), ValueError, "not nan"),
        (dict(temperature=torch.tensor(-0.1)), ValueError, "positive"),
        (dict(temperature=torch.ones(2)), ValueError, "0-dim"),
        (dict(reduction="average"), ValueError, "'average'"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    arguments = dict(z0=torch.randn(4, 5), z1=torch.randn(4, 5), temperature=0.5) | change
    with pytest.raises(error, match=says):
        nt_xent(**arguments)


def test_module_has_lightlys_call():
    z0, z1 = views("independent", 8, 4)
    torch.testing.assert_close(fastssl.NTXentLoss()(z0, z1), nt_xent(z0, z1, 0.5))
    torch.testing.assert_close(fastssl.NTXentLoss(temperature=0.1)(z0, z1), nt_xent(z0, z1, 0.1))
    with pytest.raises(ValueError, match="memory_bank_size must be"):
        fastssl.NTXentLoss(memory_bank_size=64)
    gathered = fastssl.NTXentLoss(gather_distributed=True)  # tests/distributed has several ranks
    torch.testing.assert_close(gathered(z0, z1), nt_xent(z0, z1, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_loss(dtype):
    z0, z1 = views("related", 40, 16)
    for backend in BACKENDS:
        with fastssl.use_backend(backend):
            plain = nt_xent(z0, z1, 0.1)
            with torch.autocast("cpu", dtype):
                assert torch.equal(nt_xent(z0, z1, 0.1), plain)


def test_double_use_in_one_graph():
    """One tensor as both views, and two losses over it, add their gradients."""
    z = torch.randn(10, 6, requires_grad=True)
    w = torch.randn(10, 6, requires_grad=True)
    together = nt_xent(z, w, 0.3) + nt_xent(w, z, 0.1) + nt_xent(z, z, 0.5)
    d_z, d_w = torch.autograd.grad(together, (z, w))
    z64, w64 = (t.detach().double().requires_grad_() for t in (z, w))
    exact = nt_xent(z64, w64, 0.3) + nt_xent(w64, z64, 0.1) + nt_xent(z64, z64, 0.5)
    for mine, right in zip((d_z, d_w), torch.autograd.grad(exact, (z64, w64)), strict=True):
        assert relative(mine, right) < 1e-5
