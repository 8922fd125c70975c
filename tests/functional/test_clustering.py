"""sinkhorn as SwAV and DINOv2 define it, and where their arithmetic ends."""

from __future__ import annotations

import pytest
import torch

from fastssl.functional import sinkhorn, sinkhorn_potentials


def as_in_the_paper(scores, epsilon, iterations):
    """SwAV's steps; DINOv2's differ in constants that cancel."""
    q = torch.exp(scores / epsilon).T  # [K, B]
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T


def draw(b=50, k=30):
    return torch.rand(b, k, generator=torch.Generator().manual_seed(b + k)) * 2 - 1


@pytest.mark.parametrize("iterations", [1, 2, 3, 20])
def test_is_the_papers(iterations):
    x = draw()
    right = as_in_the_paper(x.double(), 0.05, iterations)
    torch.testing.assert_close(sinkhorn(x, 0.05, iterations).double(), right, atol=1e-6, rtol=1e-5)
    u, v = sinkhorn_potentials(x, 0.05, iterations)
    assert u.dtype == v.dtype == torch.float64
    plan = torch.exp(x.double() / 0.05 - u[:, None] - v)
    torch.testing.assert_close(plan, right, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.softmax(x.double() / 0.05 - v, 1), right, atol=1e-6, rtol=1e-5)


def test_lives_where_the_papers_does_not():
    x = draw() * 20
    x[:, 3] -= 200  # a prototype far from all
    assert as_in_the_paper(x, 0.05, 3).isnan().any()
    plan = sinkhorn(x)
    torch.testing.assert_close(plan.sum(1), torch.ones(50))
    assert plan[:, 3].sum() > 0.1


def test_converges_to_equal_shares():
    plan = sinkhorn(draw(), iterations=300)
    torch.testing.assert_close(plan.sum(0), torch.full((30,), 50 / 30), rtol=1e-4, atol=0)
