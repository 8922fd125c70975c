"""Each loss once by Triton beside the reference in float64, with tiles of 16."""

from __future__ import annotations

import fastssl_kernels.similarity_lse_plan as plan
import pytest
import torch

import fastssl
from fastssl.functional import (
    clip_loss,
    dcl,
    dclw,
    info_nce,
    multi_view_nt_xent,
    nt_xent,
    sup_con,
)
from tests.cases import views
from tests.functional.comparison import unit

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's log(0)
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
N, D = 21, 12  # ragged beside tiles of 16
LABELS = torch.arange(N, device=DEVICE) % 3


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip."""
    shipped = plan.TILES["hopper"]
    tiles = {key: plan.Tiles(16, 16, 4, 2, old.step and 32) for key, old in shipped.items()}
    monkeypatch.setattr(plan, "TILES", {"hopper": tiles, "small": tiles})


# Each of two tensors [N, D], unit rows, and a temperature.
LOSSES = {
    "nt_xent": nt_xent,
    "info_nce": lambda a, b, t: info_nce(a, b, None, t),
    "info_nce both ways": lambda a, b, t: info_nce(a, b, None, t, symmetric=True),
    "info_nce queue": lambda a, b, t: info_nce(a, b, torch.cat([b, a]).roll(3, 0), t),
    "info_nce frozen queue": lambda a, b, t: info_nce(a, b, torch.cat([b, a]).detach(), t),
    "info_nce own keys": lambda a, b, t: info_nce(a, b, b.roll(1, 0).unflatten(0, (N, 1)), t),
    "clip": lambda a, b, t: clip_loss(a, b, 1 / t),
    "sup_con": lambda a, b, t: sup_con(torch.stack([a, b], 1), LABELS, t),
    "sup_con one": lambda a, b, t: sup_con(torch.stack([a, b], 1), None, t, contrast_mode="one"),
    "sup_con single view": lambda a, b, t: sup_con(a + b, LABELS, t, normalize=True),
    "multi-view": lambda a, b, t: multi_view_nt_xent([a, b, a + b], None, t),
    "multi-view indexes": lambda a, b, t: multi_view_nt_xent(a + b, LABELS.clamp(max=1), t),
    "dcl": dcl,
    "dclw": dclw,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_is_the_reference(name, dtype):
    pair = [unit(z).to(DEVICE, dtype) for z in views("related", N, D)]
    results = []
    for backend, wide in (("triton", dtype), ("reference", torch.float64)):
        leaves = [z.to(wide).requires_grad_() for z in pair]
        t = torch.tensor(0.2, device=DEVICE, requires_grad=True)
        with fastssl.use_backend(backend):
            loss = LOSSES[name](*leaves, t)
        results.append((loss, *torch.autograd.grad(loss, (*leaves, t))))
    (loss, *gradients), (true, *d_true) = results
    # Sums of inputs are rounded once more, and gradients come in several parts.
    exact = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.double(), true, rtol=exact / 10, atol=0)
    for mine, right in zip(gradients, d_true, strict=True):
        assert (mine.double() - right).norm() <= exact * right.norm()
