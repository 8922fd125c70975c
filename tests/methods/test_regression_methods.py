"""BYOL, SimSiam, Barlow Twins and VICReg compute what their papers say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.methods import BYOL, BarlowTwins, SimSiam, VICReg
from fastssl.nn import SmallCNN, projection_head
from fastssl.optim import build_optimizer, parameter_groups, set_lr

DIM = 8


def parts(head):
    return SmallCNN(1, width=4), projection_head(head, 16, 32, DIM)


def images(n=9):
    return torch.rand(2, n, 1, 12, 12).unbind()


def cosine(x, y):
    return F.cosine_similarity(x.double(), y.double())


def test_byol_predicts_the_other_views_target_both_ways():
    byol = BYOL(*parts("mlp-bn"), dim=DIM, predictor_hidden=16)
    x0, x1 = images()
    p0, p1 = (byol.predictor(byol.head(byol.encoder(x))) for x in (x0, x1))
    z0, z1 = (byol.target_encoder(x) for x in (x0, x1))
    expected = (4 - 2 * cosine(p0, z1) - 2 * cosine(p1, z0)).mean()
    torch.testing.assert_close(byol(x0, x1), expected.float(), rtol=1e-5, atol=1e-6)


def test_byols_target_follows_ever_more_slowly():
    byol = BYOL(*parts("mlp-bn"), dim=DIM, predictor_hidden=16, key_momentum=0.9)
    with torch.no_grad():
        byol.encoder.layers[0].weight.add_(1)
    online, before = (m.layers[0].weight for m in (byol.encoder, byol.target_encoder.module[0]))
    before = before.clone()
    byol.after_step()
    moved = byol.target_encoder.module[0].layers[0].weight
    torch.testing.assert_close(moved, torch.lerp(online, before, 0.9))
    momenta = []
    for progress in (0.0, 0.5, 1.0):
        byol.before_step(progress, 10 * progress)
        momenta.append(byol.key_momentum)
    assert momenta == pytest.approx([0.9, 0.95, 1.0])


def test_simsiam_takes_the_other_view_as_given():
    simsiam = SimSiam(*parts("simsiam"), dim=DIM, predictor_hidden=4)
    x0, x1 = images()
    z0, z1 = (simsiam.head(simsiam.encoder(x)) for x in (x0, x1))
    p0, p1 = simsiam.predictor(z0), simsiam.predictor(z1)
    expected = -(cosine(p0, z1.detach()) + cosine(p1, z0.detach())).mean() / 2
    loss = simsiam(x0, x1)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)
    weight = simsiam.encoder.layers[0].weight
    gradients = [torch.autograd.grad(value, weight)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_simsiams_predictor_keeps_its_rate():
    simsiam = SimSiam(*parts("simsiam"), dim=DIM, predictor_hidden=4)
    optimizer = build_optimizer(
        "sgd", simsiam, lr=0.1, weight_decay=0.01, constant_lr=simsiam.constant_lr
    )
    set_lr(optimizer, 0.03, constant=0.1)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len([*simsiam.parameters()])
    for name, parameter in simsiam.named_parameters():
        assert rates[parameter] == (0.1 if name.startswith("predictor.") else 0.03), name
    decays = {group["weight_decay"] for group in optimizer.param_groups[2:]}
    assert decays == {0.01, 0.0}
    set_lr(optimizer, 0.03)
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}
    assert len(parameter_groups(simsiam, 0.01)) == 2


def test_barlow_twins_wants_the_cross_correlation_to_be_the_identity():
    method = BarlowTwins(*parts("expander"), lambd=0.3)
    x0, x1 = images()
    z0, z1 = (F.batch_norm(method.head(method.encoder(x)), None, None, None, None, True)
              for x in (x0, x1))  # fmt: skip
    c = z0.T @ z1 / 9
    weights = torch.full((DIM, DIM), 0.3).fill_diagonal_(1)
    expected = (weights * (c - torch.eye(DIM)).square()).sum()
    torch.testing.assert_close(method(x0, x1), expected, rtol=1e-4, atol=1e-5)


def test_vicreg_wants_variance_and_no_covariance():
    method = VICReg(*parts("expander"), invariance=2, variance=3, covariance=5)
    x0, x1 = images()
    z0, z1 = (method.head(method.encoder(x)) for x in (x0, x1))
    hinge = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (z0, z1)) / 2
    apart = sum(z.T.cov().square().sum() - z.var(0).square().sum() for z in (z0, z1)) / DIM
    expected = 2 * F.mse_loss(z0, z1) + 3 * hinge + 5 * apart
    torch.testing.assert_close(method(x0, x1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "norms"), [("expander", 2), ("simsiam", 3)])
def test_heads(name, norms):
    head = projection_head(name, 16, 32, DIM)
    linears = [m for m in head if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linears] == [32, 32, DIM]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head) == norms
    assert (name == "simsiam") == (isinstance(head[-1], nn.BatchNorm1d) and not head[-1].affine)
    assert head(torch.rand(4, 16)).shape == (4, DIM)
