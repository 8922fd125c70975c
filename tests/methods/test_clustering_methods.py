"""SwAV, DINO and DeepCluster compute what their papers say, and when."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.errors import UserError
from fastssl.methods import DINO, DeepCluster, SwAV
from fastssl.nn import Prototypes, SmallCNN, SmallResNet, projection_head, resnet18

N, DIM, K = 9, 8, 6


def parts(head="mlp"):
    return SmallCNN(1, width=4), projection_head(head, 16, 32, DIM)


def crops():
    return [torch.rand(N, 1, side, side) for side in (12, 12, 8, 8, 8)]


def cosines(z, c):
    return F.normalize(z.double(), dim=1) @ F.normalize(c.double(), dim=1).T


def cross_entropy(q, scores, temperature):
    return -(q * (scores / temperature).log_softmax(dim=1)).sum(dim=1).mean()


def same(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", [SmallCNN(1, 4), SmallResNet(1, 4), resnet18("cifar", 1)])
def test_crops_of_one_size_pass_the_encoder_together(encoder):
    views = crops()
    swav = SwAV(encoder, nn.Identity(), dim=4, prototypes=K)
    z = swav.embed(*views)
    assert len(z) == 5
    large, small = encoder(torch.cat(views[:2])), encoder(torch.cat(views[2:]))
    torch.testing.assert_close(torch.cat(z), torch.cat([large, small]))


# Prototypes


def test_prototypes_are_compared_by_cosine():
    z = 3 * torch.randn(N, DIM)
    swav, dino = Prototypes(DIM, K), Prototypes(DIM, K, weight_norm=True)
    torch.testing.assert_close(swav.weight.norm(dim=1), torch.ones(K))
    assert (dino.weight.norm(dim=1) < 0.99).any()
    for prototypes in (swav, dino):
        same(prototypes(z), cosines(z, prototypes.weight))
        with torch.autocast("cpu", torch.bfloat16):
            same(prototypes(z), cosines(z, prototypes.weight))
    with torch.no_grad():
        swav.weight.mul_(2)
    same(swav(z), 2 * cosines(z, swav.weight))
    swav.normalize_()
    same(swav(z), cosines(z, swav.weight))


def test_a_step_of_weight_normalised_prototypes_is_a_turn():
    prototypes = Prototypes(DIM, K, weight_norm=True)
    prototypes(torch.randn(N, DIM)).square().sum().backward()
    radial = (prototypes.weight.grad * prototypes.weight).sum(dim=1)
    torch.testing.assert_close(radial, torch.zeros(K), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [SwAV, DINO])
def test_prototypes_are_frozen_at_first(method):
    method = method(*parts(), dim=DIM, prototypes=K, freeze_epochs=2)
    views = crops()
    for epoch, learns in ((1.99, False), (2.0, True)):
        method.zero_grad()
        method.before_step(0.5, epoch)
        method(*views).backward()
        assert (method.prototypes.weight.grad is not None) == learns
        assert method.head[0].weight.grad.norm() > 0


# SwAV


def codes(scores, epsilon=0.05):
    """Sinkhorn as in the authors' code."""
    q = torch.exp(scores / epsilon).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True) * len(q)
        q /= q.sum(dim=0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).T


@pytest.mark.parametrize("queue", [False, True])
def test_swav_predicts_the_codes_of_the_other_crops(queue):
    swav = SwAV(*parts(), dim=DIM, prototypes=K, queue_size=20, queue_epoch=3)
    swav.before_step(0.5, 3.0 if queue else 2.99)
    z = swav.embed(*crops())
    scores = [cosines(x, swav.prototypes.weight) for x in z]
    losses = []
    for i in range(2):
        rows = scores[i].detach()
        if queue:
            rows = torch.cat([cosines(swav.queues[i].rows, swav.prototypes.weight).detach(), rows])
        q = codes(rows)[-N:]
        losses += [cross_entropy(q, s, 0.1) for v, s in enumerate(scores) if v != i]
    same(swav.loss(*z), torch.stack(losses).mean())


def test_swav_remembers_the_large_crops_and_normalises():
    swav = SwAV(*parts(), dim=DIM, prototypes=K, queue_size=20)
    with torch.no_grad():
        swav.prototypes.weight.mul_(3)
    z = torch.randn(5, N, DIM).unbind()
    swav.after_step(*z)
    for queue, crop in zip(swav.queues, z, strict=False):
        torch.testing.assert_close(queue.rows[:N], F.normalize(crop))
    torch.testing.assert_close(swav.prototypes.weight.norm(dim=1), torch.ones(K))
    assert len(SwAV(*parts(), dim=DIM, prototypes=K).queues) == 0


# DINO


def test_dino_predicts_what_the_teacher_makes_of_the_large_crops():
    dino = DINO(*parts("dino"), dim=DIM, prototypes=K, key_momentum=0.9, teacher_temperature=0.05)
    dino.criterion.center.copy_(torch.randn(K) / 10)
    with torch.no_grad():
        dino.head[0].weight.mul_(1.5)
        dino.after_step(*torch.randn(5, N, DIM).unbind(), *torch.randn(2, N, K).unbind())
    views = crops()
    student = [cosines(z, dino.prototypes.weight) for z in dino.embed(*views)]
    teacher = [dino.teacher.module(x).double() for x in views[:2]]
    q = [((t - dino.criterion.center) / 0.05).softmax(dim=1) for t in teacher]
    losses = [cross_entropy(q[t], student[s], 0.1) for t in range(2) for s in range(5) if s != t]
    same(dino(*views), torch.stack(losses).mean())
    assert not torch.allclose(dino.teacher.module(views[0]), dino.student(views[0]), atol=1e-4)


def test_dinos_teacher_and_centre_follow():
    dino = DINO(*parts("dino"), dim=DIM, prototypes=K, key_momentum=0.9, center_momentum=0.8)
    before = dino.prototypes.weight.detach().clone()
    with torch.no_grad():
        dino.prototypes.weight.add_(1)
    outputs = torch.randn(2, N, K)
    dino.after_step(*torch.randn(5, N, DIM).unbind(), *outputs.unbind())
    moved = dino.teacher.module[2].weight
    torch.testing.assert_close(moved, before + 0.1)
    torch.testing.assert_close(dino.criterion.center, 0.2 * outputs.mean(dim=(0, 1)))


def test_dinos_schedules():
    dino = DINO(
        *parts("dino"),
        dim=DIM,
        prototypes=K,
        key_momentum=0.9,
        teacher_temperature=0.07,
        warmup_teacher_temperature=0.04,
        teacher_warmup_epochs=4,
    )
    seen = []
    for epoch in (0, 0.9, 1, 3, 20, 40):
        dino.before_step(epoch / 40, epoch)
        seen.append((dino.key_momentum, dino.teacher_temperature))
    momenta, temperatures = zip(*seen, strict=True)
    assert momenta[::4] == pytest.approx((0.9, 0.95))
    assert momenta[-1] == 1
    assert temperatures == pytest.approx((0.04, 0.04, 0.05, 0.07, 0.07, 0.07))


# DeepCluster


def deep_cluster(samples=40, **options):
    return DeepCluster(*parts(), samples, dim=DIM, **{"prototypes": 4, "clusterings": 3, **options})


def test_deep_cluster_learns_nothing_before_it_has_seen_images():
    method = deep_cluster()
    method.before_step(0.0, 0.0)
    loss = method(*crops(), indices=torch.arange(N))
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in method.parameters())


def test_deep_cluster_finds_clusters_anew_every_epoch():
    method = deep_cluster()
    classes = torch.arange(36) % 4
    z = torch.eye(DIM)[classes] + 0.05 * torch.randn(36, DIM)
    method.after_step(z, z.flip(1), z[:, :5], indices=torch.arange(36))
    torch.testing.assert_close(method.banks[0].rows[:36], F.normalize(z))
    torch.testing.assert_close(method.banks[1].rows[:36], F.normalize(z.flip(1)))
    method.before_step(0.1, 1.5)
    assert (method.labels == -1).all(), "only between epochs"
    method.before_step(0.1, 2.0)
    assert (method.labels[:, 36:] == -1).all(), "not of images never seen"
    for i, (labels, centroids) in enumerate(zip(method.labels, method.centroids, strict=True)):
        rows = method.banks[i % 2].rows[:36]
        assert torch.equal(labels[:36], (rows @ centroids.T).argmax(dim=1))
        torch.testing.assert_close(centroids.norm(dim=1), torch.ones(4))
        for k in labels[:36].unique():
            mean = F.normalize(rows[labels[:36] == k].sum(dim=0), dim=0)
            torch.testing.assert_close(centroids[k], mean, rtol=0, atol=1e-5)
    assert not torch.equal(method.labels[0], method.labels[2]), "each from other centroids"
    before = method.labels.clone()
    method.before_step(0.1, 3.0)
    assert not torch.equal(before, method.labels)


def test_deep_clusters_loss():
    method = deep_cluster(temperature=0.3)
    method.centroids.copy_(F.normalize(torch.randn(3, 4, DIM), dim=2))
    method.labels.copy_(torch.randint(4, (3, 40)))
    indices = torch.randperm(40)[:N]
    method.labels[1, indices[2]] = -1  # not seen when the second clustering was made
    z = method.embed(*crops())
    losses = [
        F.cross_entropy(
            torch.cat([cosines(x, c) for x in z]) / 0.3, labels[indices].repeat(5), ignore_index=-1
        )
        for c, labels in zip(method.centroids, method.labels, strict=True)
    ]
    same(method.loss(*z, indices=indices), torch.stack(losses).mean())


def test_deep_cluster_needs_as_many_images_as_clusters():
    with pytest.raises(UserError, match="prototypes: 3 images do not make 4 clusters"):
        deep_cluster(samples=3)
