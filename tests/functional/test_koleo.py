"""koleo_loss: the nearest neighbour is never oneself."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.functional import koleo_loss
from tests.cases import views
from tests.functional.comparison import BACKENDS, agree, peer, unit


def formula(features, eps=1e-8):
    x = unit(features.double())
    similarity = (x @ x.T).fill_diagonal_(-2)
    nearest = similarity.detach().argmax(1)
    return -((x - x[nearest] + eps).norm(dim=1) + eps).log().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_formula(backend, dtype):
    for kind, n, d in (("independent", 2, 3), ("related", 61, 127), ("cone", 130, 33)):
        z = torch.cat(views(kind, n, d)).to(dtype).requires_grad_()
        with fastssl.use_backend(backend):
            loss = koleo_loss(z)
            [gradient] = torch.autograd.grad(loss, z)
        wide = z.detach().double().requires_grad_()
        right = formula(wide)
        [d_right] = torch.autograd.grad(right, wide)
        assert abs(loss.item() - right.item()) <= 1e-6 * max(1, abs(right.item()))
        bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
        assert (gradient.double() - d_right).norm() <= bound * d_right.norm()


def test_is_lightlys():
    loss = peer("lightly.loss", "lightly").KoLeoLoss()
    agree(koleo_loss, loss, torch.cat(views("independent", 20, 9)))


@pytest.mark.parametrize("copies", [2, 3, 50])
def test_equal_rows_are_neighbours_at_distance_zero(copies):
    row = torch.randn(1, 6)
    z = torch.cat([row.repeat(copies, 1), torch.randn(5, 6)]).requires_grad_()
    loss = koleo_loss(z)
    torch.testing.assert_close(loss.double(), formula(z).detach(), rtol=1e-6, atol=0)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_gradcheck_and_module():
    z = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(koleo_loss, z)
    assert torch.equal(fastssl.KoLeoLoss(1e-3)(z), koleo_loss(z, 1e-3))


def test_nan_stays_visible():
    z = torch.randn(7, 4)
    z[3, 1] = float("nan")
    assert koleo_loss(z).isnan()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((torch.ones(1, 4),), ValueError, "at least two rows"),
        ((torch.ones(4),), ValueError, r"shape \[N, D\]"),
        ((torch.ones(3, 4).long(),), TypeError, "features must be a floating-point"),
        ((torch.ones(3, 4), 0.0), ValueError, "eps must be positive"),
    ],
)
def test_errors_name_the_argument(arguments, error, says):
    with pytest.raises(error, match=says):
        koleo_loss(*arguments)
