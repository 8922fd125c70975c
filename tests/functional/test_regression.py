"""BYOL's and SimSiam's losses against their formulas in float64 on the same rounded inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import byol_loss, negative_cosine_similarity, simsiam_loss
from tests.cases import KINDS, views
from tests.numerics import GRADIENT, LOSS

SHAPES = [(1, 8), (7, 5), (61, 127)]
LOSSES = {"byol": byol_loss, "simsiam": simsiam_loss}


def unit(x):
    return torch.where((x == 0).all(1, keepdim=True), 0.0, F.normalize(x))


def cosine(x, y):
    """A zero row, which has no direction, is at 0 to all."""
    return (unit(x) * unit(y)).sum(1)


def byol(p0, p1, z0, z1):
    """The squared distances of the paper, [N]."""
    return sum(
        torch.where(
            (p == 0).all(1) | (z == 0).all(1),
            2 - 2 * cosine(p, z),
            (F.normalize(p) - F.normalize(z)).square().sum(1),
        )
        for p, z in ((p0, z1), (p1, z0))
    )


def simsiam(p0, p1, z0, z1):
    return -cosine(p0, z1) / 2 - cosine(p1, z0) / 2


FORMULAS = {"byol": byol, "simsiam": simsiam}


def four(kind, shape, dtype):
    p0, z1 = views(kind, *shape, seed=1)
    p1, z0 = views(kind, *shape, seed=2)
    return [x.to(dtype) for x in (p0, p1, z0, z1)]


def evaluate(loss, tensors, upstream):
    """Rows, and the gradients of both predictions."""
    p0, p1, z0, z1 = (x.detach().requires_grad_() for x in tensors)
    rows = loss(p0, p1, z0, z1)
    gradients = torch.autograd.grad(rows, (p0, p1), upstream.to(rows.dtype))
    return rows.detach(), *gradients


@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_is_the_formula(name, kind, dtype):
    for shape in SHAPES:
        tensors = four(kind, shape, dtype)
        upstream = torch.rand(shape[0])
        mine = evaluate(lambda *x: LOSSES[name](*x, reduction="none"), tensors, upstream)
        wide = [x.double() for x in tensors]
        true = evaluate(FORMULAS[name], wide, upstream)
        assert mine[0].dtype == torch.float32
        torch.testing.assert_close(mine[0].double(), true[0], rtol=LOSS, atol=1e-14)
        for a, b in zip(mine[1:], true[1:], strict=True):
            assert a.dtype == dtype
            assert a.isfinite().all()
            # what is left of a direction's gradient is exact to a rounding of the whole, 1/‖p‖
            assert (a.double() - b).norm() <= GRADIENT[dtype] * b.norm() + 1e-15


def test_targets_and_zero_rows_receive_no_gradient():
    for loss in LOSSES.values():
        p0, p1, z0, z1 = (x.requires_grad_() for x in torch.randn(4, 5, 3))
        with torch.no_grad():
            p0[2] = 0
        loss(p0, p1, z0, z1).backward()
        assert z0.grad is None
        assert z1.grad is None
        assert not p0.grad[2].any()
        assert p0.grad[1].any()
    p, z = (x.requires_grad_() for x in torch.randn(2, 5, 3))
    negative_cosine_similarity(p, z).backward()
    assert p.grad.any()
    assert z.grad.any()


def test_the_losses_are_kin():
    p0, p1, z0, z1 = torch.randn(4, 9, 6, dtype=torch.float64)
    byol, simsiam = byol_loss(p0, p1, z0, z1), simsiam_loss(p0, p1, z0, z1)
    torch.testing.assert_close(byol, 4 + 4 * simsiam)
    pair = negative_cosine_similarity(p0, z1) + negative_cosine_similarity(p1, z0)
    torch.testing.assert_close(pair / 2, simsiam)
    total = byol_loss(p0, p1, z0, z1, reduction="sum")
    torch.testing.assert_close(total, 9 * byol)
    assert torch.equal(fastssl.BYOLLoss()(p0, p1, z0, z1), byol)
    assert torch.equal(fastssl.SimSiamLoss()(p0, p1, z0, z1), simsiam)


def test_a_met_target_keeps_its_digits():
    p = torch.randn(6, 40)
    z = p + 1e-4 * torch.randn(6, 40)
    true = byol(*(x.double() for x in (p, p, z, z)))
    rows = byol_loss(p, p, z, z, reduction="none")
    torch.testing.assert_close(rows.double(), true, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [*LOSSES.values(), negative_cosine_similarity])
def test_gradcheck_and_compile(loss):
    leaves = [x.requires_grad_() for x in torch.randn(2, 4, 3, dtype=torch.float64)]
    one_way = loss is negative_cosine_similarity
    targets = () if one_way else torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *p: loss(*p, *targets), leaves)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(*leaves, *targets), loss(*leaves, *targets))


def test_nan_and_infinity_stay_visible_and_autocast_lowers_nothing():
    for bad in (float("nan"), float("inf")):
        p0, p1, z0, z1 = torch.randn(4, 5, 3)
        z0[2, 1] = bad
        rows = byol_loss(p0, p1, z0, z1, reduction="none")
        assert rows.isnan().tolist() == [False, False, True, False, False]
        assert simsiam_loss(p0, p1, z0, z1).isnan()
    four = torch.randn(4, 5, 3)
    plain = byol_loss(*four)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(byol_loss(*four), plain)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(z1=torch.randn(4, 6)), ValueError, r"one shape \[N, D\], not .*\[4, 6\]"),
        (dict(p1=torch.randn(4, 5).bfloat16()), TypeError, "p0 and p1 must have one dtype"),
        (dict(z0=torch.ones(4, 5, dtype=torch.long)), TypeError, "z0 must be a floating-point"),
        (dict(reduction="max"), ValueError, 'reduction must be "mean"'),
        (dict.fromkeys(("p0", "p1", "z0", "z1"), torch.randn(0, 5)), ValueError, "at least one"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    four = torch.randn(4, 4, 5)
    for loss in LOSSES.values():
        with pytest.raises(error, match=says):
            loss(**dict(zip(("p0", "p1", "z0", "z1"), four, strict=True)) | change)
