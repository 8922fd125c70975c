"""``similarity_lse`` with pairs that are no columns, and the loss of its results, by Triton beside
the reference in float64: under the interpreter, or on CUDA."""

from __future__ import annotations

import fastssl_kernels.similarity_lse_loss as loss_kernels
import fastssl_kernels.similarity_lse_plan as plan
import pytest
import torch

from fastssl import reference
from tests.numerics import GRADIENT, relative
from tests.ops.test_similarity_lse_pairs import FORMS, NEEDS, inputs, run

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's log(0)
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip."""
    tiles = {
        key: plan.Tiles(16, 16, 4, 2, t.step and 32) for key, t in plan.TILES["hopper"].items()
    }
    monkeypatch.setattr(plan, "TILES", {"hopper": tiles, "small": tiles})


@pytest.mark.parametrize("scale", [5.0, 150.0])
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("form", ["cosines", "products"])
def test_is_the_reference(form, dtype, scale):
    tensors, upstream = inputs(dtype, m=21)
    tensors, upstream = [t.to(DEVICE) for t in tensors], upstream.to(DEVICE)
    wide = [t.double() for t in tensors]
    s = torch.tensor(scale, dtype=torch.float64, device=DEVICE)
    right, d_right = run("reference", wide, s, (True,) * 4, upstream, **FORMS[form])
    # Columns that learn and frozen ones, pairs that learn and frozen ones, each on its own.
    for needs in NEEDS[::4]:
        mine, d_mine = run("triton", tensors, s, needs, upstream, **FORMS[form])
        for a, b in zip(mine, right, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7 * scale)
        wanted = [d for d, need in zip(d_right, needs, strict=True) if need]
        for a, b in zip(d_mine, wanted, strict=True):
            most = 1.5 if a.dim() else 6.0  # of a sum of many weights, each rounded
            assert relative(a, b) < most * GRADIENT[dtype]


@pytest.mark.parametrize("d", [1, 16, 100, 300])
def test_every_width(d):
    tensors, upstream = inputs(torch.float32, m=5, k=9, d=d)
    tensors, upstream = [t.to(DEVICE) for t in tensors], upstream.to(DEVICE)
    wide, s = [t.double() for t in tensors], torch.tensor(3.0, device=DEVICE)
    for needs in ((True, False, True, True), (True, False, False, False)):
        results = [
            run(backend, some, s.to(some[0].dtype), needs, upstream, normalize=True)
            for backend, some in (("triton", tensors), ("reference", wide))
        ]
        (mine, d_mine), (right, d_right) = results
        for a, b in zip((*mine, *d_mine), (*right, *d_right), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("n", [1, 37, 300])
def test_the_loss(n, both, monkeypatch):
    monkeypatch.setattr(loss_kernels, "ALONE", 128)  # of 300 rows three programs
    monkeypatch.setattr(loss_kernels, "ROWS", 64)
    pair, lse, other = 40 * torch.randn(3, n, dtype=torch.float64, device=DEVICE)
    pair[0], lse[0] = 600.0, 540.0  # whose loss is e^-60
    lse[n // 2] = float("-inf")
    leaves = [t.clone().requires_grad_() for t in (pair, lse, other)[: 3 if both else 2]]
    second = other if both else None
    right = reference.similarity_lse_loss(*leaves).mean()
    loss = loss_kernels.launch_similarity_lse_loss_fwd(pair, lse, second)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=1e-37)
    upstream = torch.tensor(3.0, device=DEVICE)
    found = loss_kernels.launch_similarity_lse_loss_bwd(upstream, pair, lse, second)
    for a, b in zip(found, torch.autograd.grad(3 * right, leaves), strict=False):
        torch.testing.assert_close(a, b.nan_to_num(0.0), rtol=1e-8, atol=1e-14)
    lse[n // 3] = float("nan")
    assert loss_kernels.launch_similarity_lse_loss_fwd(pair, lse, second).isnan()
