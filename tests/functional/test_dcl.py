"""Decoupled contrastive learning, plain and weighted."""

from __future__ import annotations

import functools

import pytest
import torch

import fastssl
from fastssl.functional import dcl, dclw
from tests.cases import KINDS, SHAPES, TEMPERATURES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck, peer

rows_of = functools.partial(dcl, reduction="none")


def weighted(z0, z1, t):
    return dclw(z0, z1, t, reduction="none")


def plain(dot, z0, z1, t, weights=None):
    z, n = torch.cat([z0, z1]), len(z0)
    pair = torch.arange(2 * n).roll(n)
    apart = torch.eye(2 * n, dtype=torch.bool)
    apart = apart | apart[pair]
    positive = dot(z, z)[torch.arange(2 * n), pair] / t
    if weights is not None:
        positive = weights.repeat(2) * positive
    return (dot(z, z) / t).masked_fill(apart, float("-inf")).logsumexp(1) - positive


def plain_weighted(dot, z0, z1, t, sigma=0.5):
    closeness = ((z0 * z1).sum(1) / sigma).exp().detach()
    return plain(dot, z0, z1, t, 2 - closeness / closeness.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for i, (n, d) in enumerate(SHAPES[1:]):
        pair = [z.to(dtype) for z in views(kind, n, d)]
        t = (0.01, 0.07, 1.0)[i % 3]
        compare(rows_of, plain, pair, t, difference=True)
        compare(weighted, plain_weighted, pair, t, difference=True)


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, t):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pair = [z.to(dtype) for z in views("related", 61, 33)]
        compare(rows_of, plain, pair, t, backend, difference=True)
        compare(weighted, plain_weighted, pair, t, backend, difference=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_products_and_given_weights(backend):
    pair = [2 * z for z in views("related", 30, 12)]
    options = dict(backend=backend, difference=True)
    dots = functools.partial(rows_of, normalize=False)
    compare(dots, plain, pair, 1.0, normalize=False, **options)
    w = torch.rand(30)
    given = functools.partial(rows_of, weights=w)
    compare(given, functools.partial(plain, weights=w), pair, 0.2, **options)
    w.requires_grad_()
    pulled = torch.autograd.grad(dcl(*pair, 0.5, weights=w, reduction="sum"), w)[0]
    torch.testing.assert_close(pulled, -4 * torch.cosine_similarity(*pair))


@pytest.mark.parametrize("loss", [dcl, dclw])
@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_in_the_batch(backend, loss):
    z0, z1 = (z.requires_grad_() for z in torch.randn(2, 1, 6).unbind())
    with fastssl.use_backend(backend):
        value = loss(z0, z1)
        assert value == 0
        assert not any(d.any() for d in torch.autograd.grad(value, (z0, z1)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_zero_rows(backend):
    z0, z1 = torch.randn(6, 4), torch.randn(6, 4)
    z0[2] = 0
    z0.requires_grad_()
    with fastssl.use_backend(backend):
        for loss in (dcl, dclw):
            (d_z0,) = torch.autograd.grad(loss(z0, z1), z0)
            assert torch.isfinite(d_z0).all()
            assert not d_z0[2].any()
            for bad in (float("nan"), float("inf")):
                broken = z1.clone()
                broken[3, 2] = bad
                assert loss(z0, broken).isnan()


def test_gradcheck():
    z0, z1 = views("independent", 4, 3)
    gradcheck(rows_of, z0, z1)
    w = torch.tensor([0.3, 1.0, 2.0, 0.0], dtype=torch.float64)
    gradcheck(functools.partial(rows_of, weights=w), z0, z1)
    # The weights of dclw are constants to autograd, not to differences: held to plain and lightly.


def test_compiles_to_one_graph():
    compiles(rows_of, *views("related", 6, 5))
    compiles(weighted, *views("related", 6, 5))


@pytest.mark.filterwarnings("ignore:To copy construct")  # lightly's
def test_is_lightlys():
    theirs = peer("lightly.loss", "lightly")
    pair = views("related", 13, 7)
    for t in (0.05, 0.5):
        agree(functools.partial(dcl, temperature=t), theirs.DCLLoss(t), *pair)
        agree(functools.partial(dclw, temperature=t), theirs.DCLWLoss(t), *pair)
    agree(functools.partial(dclw, sigma=0.1), theirs.DCLWLoss(sigma=0.1), *pair)
    w = torch.rand(13, dtype=torch.float64)
    agree(functools.partial(dcl, weights=w), theirs.DCLLoss(weight_fn=lambda a, b: w), *pair)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_and_dtypes(backend):
    pair = views("related", 9, 5)
    with fastssl.use_backend(backend):
        for loss in (dcl, dclw):
            rows = loss(*pair, reduction="none")
            assert rows.shape == (18,)
            torch.testing.assert_close(loss(*pair, reduction="sum"), rows.sum())
            torch.testing.assert_close(loss(*pair), rows.mean())
            for dtype, gives in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
                assert loss(*(z.to(dtype) for z in pair)).dtype == gives
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(loss(*pair, reduction="none"), rows)


def test_modules():
    pair, w = views("related", 9, 5), torch.rand(9)
    assert torch.equal(fastssl.DCLLoss()(*pair), dcl(*pair, 0.1))
    assert torch.equal(fastssl.DCLLoss(0.3)(*pair, w), dcl(*pair, 0.3, weights=w))
    assert torch.equal(fastssl.DCLWLoss(0.3, 0.7)(*pair), dclw(*pair, 0.3, 0.7))
    assert "sigma=0.7" in repr(fastssl.DCLWLoss(0.3, 0.7))


@pytest.mark.parametrize(
    ("loss", "change", "error", "says"),
    [
        (dcl, dict(z1=torch.ones(3, 5)), ValueError, "z0 and z1 must have one shape"),
        (dclw, dict(z0=torch.ones(4, 5).int()), TypeError, "z0 must be a floating-point"),
        (dcl, dict(weights=torch.ones(3)), ValueError, r"weights must have shape \[4\], not \[3\]"),
        (dcl, dict(weights=torch.ones(4).int()), TypeError, "weights must be a floating-point"),
        (dcl, dict(weights=torch.ones(4, device="meta")), ValueError, "weights must be on"),
        (dclw, dict(sigma=0.0), ValueError, "sigma must be positive and finite, not 0.0"),
        (dcl, dict(temperature=-1.0), ValueError, "temperature must be positive"),
        (dclw, dict(reduction="max"), ValueError, "'max'"),
    ],
)
def test_errors_name_the_argument(loss, change, error, says):
    with pytest.raises(error, match=says):
        loss(**(dict(z0=torch.ones(4, 5), z1=torch.ones(4, 5)) | change))
