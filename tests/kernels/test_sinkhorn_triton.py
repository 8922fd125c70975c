"""``sinkhorn`` by Triton against the reference: under the interpreter, or on CUDA."""

from __future__ import annotations

import fastssl_kernels.sinkhorn as kernels
import pytest
import torch

import fastssl
from fastssl.ops import sinkhorn, sinkhorn_potentials
from fastssl.reference import sinkhorn as reference
from tests.ops.test_sinkhorn import scores, variation

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's −inf + inf
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles that a small problem has several of."""
    monkeypatch.setattr(kernels, "ROW", 64)
    monkeypatch.setattr(kernels, "TILE_K", 32)


def check(x, iterations=3, most=1e-5):
    x = x.to(DEVICE)
    right, *_ = reference(x.double(), 0.05, iterations)
    with fastssl.use_backend("triton"):
        plan = sinkhorn(x, 0.05, iterations)
        u, v = sinkhorn_potentials(x, 0.05, iterations)
    assert plan.dtype == torch.float32
    assert variation(plan, right) <= most
    assert variation(torch.exp(x.double() / 0.05 - u[:, None] - v), right) <= most


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
def test_every_dtype(dtype):
    check(scores(20, 90, dtype=dtype), iterations=1)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 1), 500), ((1, 70), 500), ((20, 1), 5e6), ((19, 70), 500)], ids=str
)
def test_shapes_and_wide_logits(shape, size):
    check(scores(*shape, size), iterations=2)


def test_sums_out_of_reach_and_forbidden_pairs():
    x = scores(20, 90)
    x[::7] -= 1000
    x[:, 5::11] -= 300
    x[3, 5:9] += 2000
    x[:, 8], x[2, 10:40] = -INF, -INF
    check(x, iterations=2)


@pytest.mark.parametrize("value", [NAN, INF])
def test_what_has_no_plan_is_nan(value):
    x = scores(9, 40).to(DEVICE)
    x[7, 33] = value
    with fastssl.use_backend("triton"):
        assert sinkhorn(x).isnan().all()


def test_bitwise_repeatable():
    x = scores(20, 70).to(DEVICE)
    with fastssl.use_backend("triton"):
        assert torch.equal(sinkhorn(x, 0.05, 2), sinkhorn(x, 0.05, 2))
