"""sinkhorn: the reference's plan and potentials, whoever computes them, however wide the logits."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.ops import sinkhorn, sinkhorn_columns, sinkhorn_potentials
from fastssl.reference import sinkhorn as reference

BACKENDS = ["native", "reference"]  # Triton: tests/kernels
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
# (B, K): one of everything, sizes around vectors and blocks of rows.
SHAPES = [(1, 1), (1, 37), (41, 1), (5, 16), (65, 257), (130, 31), (300, 1100)]
INF, NAN = float("inf"), float("nan")


def scores(b, k, size=1.0, dtype=torch.float32, seed=0):
    """Uniform in ±size."""
    generator = torch.Generator().manual_seed(1000 * b + k + seed)
    return (size * (2 * torch.rand(b, k, generator=generator, dtype=torch.float64) - 1)).to(dtype)


def variation(plan, right):
    """The largest total variation between rows; NaN and infinity never pass."""
    assert plan.shape == right.shape
    assert torch.isfinite(plan).all()
    return (plan.double() - right).abs().sum(1).max().item() / 2


def check(x, epsilon=0.05, iterations=3, backend="native", most=1e-5):
    right, *_ = reference(x.double(), epsilon, iterations)
    with fastssl.use_backend(backend):
        plan = sinkhorn(x, epsilon, iterations)
        u, v = sinkhorn_potentials(x, epsilon, iterations)
        assert torch.equal(v, sinkhorn_columns(x, epsilon, iterations))
    assert plan.dtype == torch.float32
    assert variation(plan, right) <= most
    assert variation(torch.exp(x.double() / epsilon - u[:, None] - v), right) <= most


@DTYPES
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_reference_in_float64(backend, shape, iterations, dtype):
    check(scores(*shape, dtype=dtype), 0.05, iterations, backend)
