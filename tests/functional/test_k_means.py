"""Spherical k-means and the cross entropy of clusters, against plain loops in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.functional import cluster_loss, spherical_k_means
from tests.numerics import relative


def rows(n, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, d), dim=1).to(dtype)


def plain_k_means(x, centroids, iterations):
    x, centroids = x.double(), centroids.double()
    for _ in range(iterations):
        assigned = (x @ centroids.T).argmax(dim=1)
        for k in range(len(centroids)):
            if (assigned == k).any():
                centroids[k] = F.normalize(x[assigned == k].sum(dim=0), dim=0)
    return centroids


@pytest.mark.parametrize(("n", "k", "d"), [(200, 7, 5), (31, 31, 16), (50, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_k_means(n, k, d, iterations):
    x = rows(n, d)
    start = x[torch.randperm(n)[:k]]
    expected = plain_k_means(x, start, iterations)
    torch.testing.assert_close(
        spherical_k_means(x, start, iterations).double(), expected, rtol=0, atol=1e-5
    )


def test_a_centroid_without_rows_stays():
    x = rows(40, 4)
    start = torch.cat([x[:2], -x.mean(dim=0, keepdim=True) * 100])
    start = F.normalize(start, dim=1)
    lonely = torch.cat([x[:1], x[:1], start[2:]])  # equal ones: rows go to the first
    found = spherical_k_means(x, lonely, 1)
    torch.testing.assert_close(found[1], lonely[1], rtol=0, atol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_clear_clusters_are_found():
    truth = torch.eye(6)[:4]
    x = F.normalize(truth.repeat(50, 1) + 0.1 * torch.randn(200, 6), dim=1)
    found = spherical_k_means(x, x[[0, 1, 2, 3]])
    torch.testing.assert_close(found, truth, rtol=0, atol=0.05)


def plain_loss(z, centroids, labels, temperature):
    logits = F.normalize(z, dim=1) @ F.normalize(centroids, dim=1).T / temperature
    known = labels >= 0
    return F.cross_entropy(logits[known], labels[known])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 0.01, 1.0])
def test_the_loss_and_its_gradients(dtype, temperature):
    z, centroids = (3 * torch.randn(60, 12)).to(dtype), rows(17, 12, dtype)
    labels = torch.randint(-1, 17, (60,))
    mine = [t.clone().requires_grad_() for t in (z, centroids)]
    truth = [t.double().requires_grad_() for t in (z, centroids)]
    loss = cluster_loss(*mine, labels, temperature)
    expected = plain_loss(*truth, labels, temperature)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    for a, b in zip(mine, truth, strict=True):
        assert relative(a.grad, b.grad) < (2e-5 if dtype == torch.float32 else 5e-3)
    assert (mine[0].grad[labels < 0] == 0).all()


def test_without_clusters_the_loss_is_zero():
    z = torch.randn(5, 3, requires_grad=True)
    loss = cluster_loss(z, torch.zeros(4, 3), torch.full((5,), -1))
    loss.backward()
    assert loss == 0
    assert torch.equal(z.grad, torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"z": torch.zeros(0, 3)}, ValueError, "z must hold at least one row"),
        ({"z": torch.zeros(5, 3).long()}, TypeError, "z must be a floating-point tensor"),
        ({"centroids": torch.zeros(4, 2)}, ValueError, r"centroids must have shape \[K, 3\]"),
        ({"centroids": torch.zeros(4, 3).double()}, TypeError, "z and centroids must have one"),
        ({"labels": torch.zeros(5)}, TypeError, "labels must be a tensor of integers"),
        ({"labels": torch.zeros(4).long()}, ValueError, r"labels must have shape \[5\]"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    ],
)
def test_mistakes(change, error, says):
    good = {"z": torch.ones(5, 3), "centroids": torch.ones(4, 3), "labels": torch.zeros(5).long()}
    with pytest.raises(error, match=says):
        cluster_loss(**{**good, **change})


def test_mistakes_of_k_means():
    with pytest.raises(ValueError, match=r"centroids must have shape \[K, 3\], not \[0, 3\]"):
        spherical_k_means(torch.ones(5, 3), torch.ones(0, 3))
    with pytest.raises(ValueError, match="iterations must be an int, 0 or more"):
        spherical_k_means(torch.ones(5, 3), torch.ones(2, 3), -1)
