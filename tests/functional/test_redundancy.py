"""Barlow Twins' and VICReg's losses against formulas in float64 on the same rounded inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import barlow_twins_loss, redundancy, vicreg_loss
from tests.cases import KINDS, views
from tests.numerics import GRADIENT, LOSS

# Fewer rows than features and more; both sides of every choice of form, and of tiles of 16.
SHAPES = [(2, 3), (3, 1), (7, 5), (7, 40), (24, 16), (20, 45), (61, 33), (12, 130)]
LOSSES = {"barlow": barlow_twins_loss, "vicreg": vicreg_loss}


def off_diagonal(c):
    return (c - c.diagonal().diag()).square().sum()


def barlow(z0, z1, lambd=5e-3, eps=1e-5):
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (z0, z1))
    c = a.T @ b / len(a)
    return (c.diagonal() - 1).square().sum() + lambd * off_diagonal(c)


def vicreg(z0, z1, invariance=25, variance=25, covariance=1, eps=1e-4):
    loss = invariance * F.mse_loss(z0, z1)
    for z in (z0, z1):
        loss = loss + variance * F.relu(1 - (z.var(0) + eps).sqrt()).mean() / 2
        loss = loss + covariance * off_diagonal(z.T.cov().view(z.shape[1], -1)) / z.shape[1]
    return loss


FORMULAS = {"barlow": barlow, "vicreg": vicreg}


def evaluate(loss, *tensors):
    leaves = [z.detach().requires_grad_() for z in tensors]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, torch.tensor(0.7).to(value))


def compare(name, z0, z1, **options):
    """As near the truth as the formula in plain PyTorch, or within the published bounds."""
    mine = evaluate(lambda *z: LOSSES[name](*z, **options), z0, z1)
    true = evaluate(lambda *z: FORMULAS[name](*z, **options), z0.double(), z1.double())
    plain = evaluate(lambda *z: FORMULAS[name](*z, **options), z0.float(), z1.float())
    assert mine[0].dtype == torch.float32
    bounds = [3 * LOSS, GRADIENT[z0.dtype], GRADIENT[z0.dtype]]
    for a, p, b, bound in zip(mine, plain, true, bounds, strict=True):
        assert a.isfinite().all()
        error, torchs = (a.double() - b).norm(), (p.double() - b).norm()
        floor = 1e-7 * len(z0) ** -0.5  # of gradients that vanish where terms cancel
        assert error <= bound * b.norm() + 2 * torchs + floor, (
            f"{tuple(z0.shape)}: {error:.1e} off, torch {torchs:.1e}, of {b.norm():.1e}"
        )


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(redundancy, "TILE", 16)


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_is_the_formula(name, kind, dtype):
    for shape in SHAPES:
        compare(name, *(z.to(dtype) for z in views(kind, *shape)))


def test_with_other_weights():
    z0, z1 = views("related", 20, 18)
    compare("barlow", z0, z1, lambd=0.3, eps=0.1)
    compare("vicreg", z0, z1, invariance=2, variance=3.5, covariance=9, eps=0.02)


@pytest.mark.parametrize("name", LOSSES)
def test_features_of_very_different_size_and_far_from_zero(name):
    """Where a sum over the whole matrix less its diagonal would leave no digit."""
    for shape in ((24, 20), (6, 100)):
        z0, z1 = (4 * z for z in views("related", *shape))  # VICReg's hinge aside
        for z in (z0, z1):
            z[:, 0] *= 1e3
            z[:, 1:4] += 1e3
        mine = evaluate(LOSSES[name], z0, z1)
        true = evaluate(FORMULAS[name], z0.double(), z1.double())
        for a, b in zip(mine, true, strict=True):
            for part in (slice(0, 1), slice(1, None)):  # the large feature must not hide the others
                a_part, b_part = (x if x.dim() == 0 else x[:, part] for x in (a, b))
                assert (a_part.double() - b_part).norm() <= 2e-5 * b_part.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_collapsed_features(name):
    """No variance at all: finite, and VICReg's hinge at its most."""
    for shape in ((6, 4), (3, 20)):
        z = torch.full(shape, 0.7)
        value, *gradients = evaluate(LOSSES[name], z, z.clone())
        expected = shape[1] if name == "barlow" else 25 * (1 - 1e-4**0.5)
        torch.testing.assert_close(value, torch.tensor(expected).float(), rtol=1e-5, atol=0)
        assert all(g.isfinite().all() for g in gradients)
        compare(name, z, torch.randn(shape))


@pytest.mark.parametrize("shape", [(5, 40), (12, 18)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_and_compile(name, shape):
    z0, z1 = (z.double() / 2 for z in views("related", *shape))
    leaves = [z.requires_grad_() for z in (z0, z1)]
    assert torch.autograd.gradcheck(LOSSES[name], leaves, fast_mode=True)
    traced = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    for a, b in zip(evaluate(traced, z0, z1), evaluate(LOSSES[name], z0, z1), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", LOSSES)
def test_views_of_other_strides_and_one_that_learns(name):
    wide = torch.randn(2, 9, 40)
    z0, z1 = wide[:, :, ::2]
    compare(name, z0, z1)
    _, expected, _ = evaluate(LOSSES[name], z0, z1)
    leaf = z0.clone().requires_grad_()
    LOSSES[name](leaf, z1).mul(0.7).backward()
    torch.testing.assert_close(leaf.grad, expected)
    with torch.no_grad():
        torch.testing.assert_close(LOSSES[name](z0, z1), LOSSES[name](leaf, z1).detach())


@pytest.mark.parametrize("name", LOSSES)
def test_nan_and_infinity_stay_visible_and_autocast_lowers_nothing(name):
    for shape in ((9, 6), (5, 40)):
        z0, z1 = torch.randn(2, *shape)
        plain = evaluate(LOSSES[name], z0, z1)
        with torch.autocast("cpu", torch.bfloat16):
            inside = evaluate(LOSSES[name], z0, z1)
        assert all(map(torch.equal, inside, plain))
        for bad in (float("nan"), float("inf")):
            z1[2, 3] = bad
            value, *gradients = evaluate(LOSSES[name], z0, z1)
            assert value.isnan()
            assert not any(g.isfinite().all() for g in gradients)


def test_modules_are_the_functions():
    z0, z1 = torch.randn(2, 8, 5)
    for module, function in (
        (fastssl.BarlowTwinsLoss(), barlow_twins_loss(z0, z1)),
        (fastssl.BarlowTwinsLoss(0.3, eps=0.1), barlow_twins_loss(z0, z1, 0.3, eps=0.1)),
        (fastssl.VICRegLoss(), vicreg_loss(z0, z1)),
        (fastssl.VICRegLoss(1, 2, 3, 0.1), vicreg_loss(z0, z1, 1, 2, 3, 0.1)),
    ):
        assert torch.equal(module(z0, z1), function), module


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(z1=torch.randn(4, 6)), ValueError, r"one shape \[N, D\], not \[4, 5\] and \[4, 6\]"),
        (dict(z1=torch.randn(4, 5).bfloat16()), TypeError, "one dtype"),
        (dict(z0=torch.randn(1, 5), z1=torch.randn(1, 5)), ValueError, "at least two rows"),
        (dict(z0=torch.randn(4, 0), z1=torch.randn(4, 0)), ValueError, "at least one row"),
        (dict(eps=0.0), ValueError, "eps must be positive, not 0.0"),
        (dict(eps="1"), TypeError, "eps must be a float"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    z0, z1 = torch.randn(2, 4, 5)
    for loss in LOSSES.values():
        with pytest.raises(error, match=says):
            loss(**{"z0": z0, "z1": z1, **change})
