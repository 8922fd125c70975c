"""``fastssl.compat.solo_learn`` against the formulas of solo-learn's losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import solo_learn as compat
from tests.compat.agreement import DTYPES, SHAPES, TEMPERATURES, agrees, views

INDEXES = {
    "two views": torch.arange(20).repeat(2),
    "four views": torch.arange(10).repeat(4),
    "classes": torch.tensor([3, 1, 1, 3, 7, 7, 3, 0, 0, 0] * 4),
}


def simclr(z, indexes, t):
    z = F.normalize(z, dim=1)
    similarity = torch.exp(z @ z.T / t)
    same = indexes[:, None] == indexes
    positives = (similarity * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(dim=1)
    negatives = (similarity * ~same).sum(dim=1)
    return -torch.log(positives / (positives + negatives)).mean()


def queue_info_nce(query, key, queue, t):
    logits = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue], dim=1) / t
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def nearest(nn, p, t):
    nn, p = F.normalize(nn, dim=1), F.normalize(p, dim=1)
    return F.cross_entropy(nn @ p.T / t, torch.arange(len(nn)))


def barlow(z1, z2, lamb, scale):
    c = F.batch_norm(z1, None, None, training=True).T @ F.batch_norm(z2, None, None, training=True)
    c = c / len(z1)
    difference = (c - torch.eye(len(c))).square()
    weights = torch.where(torch.eye(len(c), dtype=torch.bool), 1.0, lamb)
    return scale * (weights * difference).sum()


def vicreg(z1, z2, invariance, variance, covariance):
    loss = invariance * F.mse_loss(z1, z2)
    for z in (z1, z2):
        loss = loss + variance * F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()
        c = (z - z.mean(0)).T @ (z - z.mean(0)) / (len(z) - 1)
        loss = loss + covariance * (c - c.diagonal().diag()).square().sum() / len(c)
    return loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_without_negatives(shape, dtype):
    z1, z2 = views(*shape, dtype)
    for mine, theirs, options in (
        (compat.barlow_loss_func, barlow, (5e-3, 0.025)),
        (compat.barlow_loss_func, barlow, (0.1, 1.0)),
        (compat.vicreg_loss_func, vicreg, (25.0, 25.0, 1.0)),
        (compat.vicreg_loss_func, vicreg, (1.0, 3.0, 2.0)),
    ):
        agrees(lambda *z: mine(*z, *options), lambda *z: theirs(*z, *options), z1, z2)  # noqa: B023
    for mine, scale, shift in (
        (compat.byol_loss_func, -2, 2),
        (compat.simsiam_loss_func, -1, 0),
    ):
        z = z2.requires_grad_()
        agrees(
            lambda p: mine(p, z),  # noqa: B023
            lambda p: scale * F.cosine_similarity(p, z2.to(p.dtype)).mean() + shift,  # noqa: B023
            z1,
        )
        assert not mine(z1, z).requires_grad
        assert torch.equal(mine(z1, z), mine(z1, z, False))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("indexes", INDEXES)
def test_simclr(indexes, temperature):
    ids = INDEXES[indexes]
    for dtype in DTYPES:
        agrees(
            lambda z: compat.simclr_loss_func(z, ids, temperature),
            lambda z: simclr(z, ids, temperature),
            torch.cat(views(20, 16, dtype)),
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moco_and_nnclr(shape, temperature):
    n, d = shape
    for dtype in DTYPES:
        query, key = (F.normalize(z, dim=1).to(dtype) for z in views(n, d))
        queue = F.normalize(torch.randn(d, 2 * n + 1), dim=0).to(dtype)
        agrees(
            lambda *x: compat.mocov2plus_loss_func(*x, temperature),
            lambda *x: queue_info_nce(*x, temperature),
            query,
            key,
            queue,
        )
        agrees(
            lambda *x: compat.nnclr_loss_func(*x, temperature),
            lambda *x: nearest(*x, temperature),
            *views(n, d, dtype),
        )


def test_defaults():
    z0, z1 = views(20, 16)
    ids = INDEXES["two views"]
    agrees(
        lambda z: compat.simclr_loss_func(z, ids),
        lambda z: simclr(z, ids, 0.1),
        torch.cat([z0, z1]),
    )
    agrees(compat.nnclr_loss_func, lambda nn, p: nearest(nn, p, 0.1), z0, z1)
    agrees(compat.barlow_loss_func, lambda *z: barlow(*z, 5e-3, 0.025), z0, z1)
    agrees(compat.vicreg_loss_func, lambda *z: vicreg(*z, 25.0, 25.0, 1.0), z0, z1)
    queue = F.normalize(torch.randn(16, 9), dim=0)
    agrees(
        compat.mocov2plus_loss_func,
        lambda q, k, queue: queue_info_nce(q, k, queue, 0.1),
        *(F.normalize(z, dim=1) for z in (z0, z1)),
        queue,
    )


def test_queue_of_another_dtype():
    """As under autocast: half precision queries, a float32 queue."""
    query, key = (F.normalize(z, dim=1) for z in views(8, 6))
    queue = F.normalize(torch.randn(6, 9), dim=0)
    loss = compat.mocov2plus_loss_func(query.bfloat16(), key, queue)
    expected = compat.mocov2plus_loss_func(query.bfloat16(), key.bfloat16(), queue.bfloat16())
    assert torch.equal(loss, expected)


def swapped(preds, assignments, t):
    losses = []
    for v, a in enumerate(assignments):
        for p in preds[:v] + preds[v + 1 :]:
            losses.append(-(a * F.log_softmax(p / t, dim=1)).sum(1).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_swav(dtype):
    preds = [torch.randn(9, 30).to(dtype).requires_grad_() for _ in range(3)]
    assignments = [(5 * torch.randn(9, 30)).softmax(1) for _ in preds]
    assignments[1] = F.one_hot(torch.arange(9), 30).float()
    loss = compat.swav_loss_func(preds, assignments, 0.2)
    wide = [p.detach().double().requires_grad_() for p in preds]
    right = swapped(wide, [a.double() for a in assignments], 0.2)
    torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=0)
    for a, b in zip(
        torch.autograd.grad(loss, preds), torch.autograd.grad(right, wide), strict=True
    ):
        assert (a.double() - b).norm() <= (1e-5 if dtype == torch.float32 else 4e-3) * b.norm()


def test_dino():
    loss = compat.DINOLoss(30, 0.04, 0.07, 3, 10, center_momentum=0.8)
    center = torch.zeros(30)
    for epoch, temperature in ((0, 0.04), (1, 0.055), (7, 0.07)):
        loss.epoch = epoch
        student, teacher = torch.randn(8, 30, requires_grad=True), torch.randn(8, 30)
        p = F.log_softmax(student / 0.1, dim=1).chunk(2)
        q = ((teacher - center) / temperature).softmax(1).chunk(2)
        right = -sum((a * b).sum(1).mean() for a, b in zip(q, p[::-1], strict=True)) / 2
        mine = loss(student, teacher)
        torch.testing.assert_close(mine, right, rtol=3e-6, atol=0)
        for a, b in zip(
            torch.autograd.grad(mine, student), torch.autograd.grad(right, student), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        center = 0.8 * center + 0.2 * teacher.mean(0)
        torch.testing.assert_close(loss.center[0], center)
