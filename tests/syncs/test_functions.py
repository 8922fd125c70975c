"""No op, loss or memory waits for the device, forward or backward; and the detector detects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastssl.functional as F
from fastssl import ops
from fastssl.nn import EMA, MemoryBank, MemoryQueue
from fastssl.optim import LARS, set_lr
from tests.syncs.pretend import HostWaits, PretendCuda

N, D, K = 8, 6, 20


@pytest.fixture
def pretend():
    with PretendCuda() as device:
        yield device


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*(shape or (N, D)), device="cuda", dtype=dtype).requires_grad_()


def classes(n: int = N) -> torch.Tensor:
    return torch.arange(n, device="cuda") % 3


# Of two views [N, D] and a temperature.
LOSSES = {
    "nt_xent": F.nt_xent,
    "nt_xent rows": lambda a, b, t: F.nt_xent(a, b, t, normalize=False, reduction="none"),
    "batch": lambda a, b, t: F.info_nce(a, b, None, t),
    "symmetric": lambda a, b, t: F.info_nce(a, b, None, t, symmetric=True),
    "queue": lambda a, b, t: F.info_nce(a, b.detach(), rows(K, D).detach(), t),
    "learned queue": lambda a, b, t: F.info_nce(a, b, rows(K, D), t),
    "own keys": lambda a, b, t: F.info_nce(a, b, rows(N, 3, D), t),
    "dcl": F.dcl,
    "dclw": F.dclw,
    "clip": lambda a, b, t: F.clip_loss(a, b, 1 / t),
    "siglip": lambda a, b, t: F.siglip_loss(a, b, 1 / t, logit_bias=-1 / t),
    "sup_con": lambda a, b, t: F.sup_con(torch.stack([a, b], 1), classes(), t),
    "sup_con no labels": lambda a, b, t: F.sup_con(torch.stack([a, b], 1), None, t),
    "sup_con one": lambda a, b, t: F.sup_con(torch.stack([a, b], 1), None, t, contrast_mode="one"),
    "three views": lambda a, b, t: F.multi_view_nt_xent([a, b, a], None, t),
    "nnclr": lambda a, b, t: F.nnclr(a, b, rows(K, D).detach(), t),
    "swav": lambda a, b, t: F.swav_loss([a, b, a, b]),
    "swav queue": lambda a, b, t: F.swav_loss([a, b], queue_scores=[rows(K, D)] * 2),
    "dino": lambda a, b, t: F.dino_loss([a, b, a], [b, a], torch.zeros(D, device="cuda")),
    "dino sinkhorn": lambda a, b, t: F.dino_loss([a, b, a], [b, a], assignment="sinkhorn"),
    "ibot": lambda a, b, t: F.ibot_patch_loss(
        a, b, torch.zeros(D, device="cuda"), images=classes()
    ),
    "ibot images": lambda a, b, t: F.ibot_patch_loss(
        a, b, torch.zeros(D, device="cuda"), images=classes(), num_images=3
    ),
    "koleo": lambda a, b, t: F.koleo_loss(a),
    "byol": lambda a, b, t: F.byol_loss(a, b, b, a),
    "simsiam": lambda a, b, t: F.simsiam_loss(a, b, b, a),
    "cosine": lambda a, b, t: F.negative_cosine_similarity(a, b),
    "barlow twins": lambda a, b, t: F.barlow_twins_loss(a, b),
    "barlow twins wide": lambda a, b, t: F.barlow_twins_loss(a[:2], b[:2]),
    "vicreg": lambda a, b, t: F.vicreg_loss(a, b),
    "cluster": lambda a, b, t: F.cluster_loss(a, rows(3, D).detach(), classes(), t),
    "distillation": lambda a, b, t: F.distillation_loss(a, b, t),
}
NUMBERS_ONLY = ("cluster", "distillation")  # whose temperature is a float


@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name, learned, pretend):
    if learned and name in NUMBERS_ONLY:
        pytest.skip("its temperature is a number")
    a, b = rows(), rows()
    t = torch.full((), 0.5, device="cuda", requires_grad=True) if learned else 0.5
    with pretend.no_waiting() as seen:
        LOSSES[name](a, b, t).sum().backward()
    assert a.grad is not None
    assert len(seen) > 3


def call_ops(device, dtype):
    """Forward and backward, where ``device`` lets nothing wait."""
    x, y = rows(dtype=dtype), rows(K, D, dtype=dtype)
    scale = torch.full((), 2.0, device="cuda", requires_grad=True)
    with device.no_waiting():
        for outputs in (
            ops.similarity_lse(x, None, scale, normalize=True, self_offset=0, pair_offset=N // 2),
            ops.similarity_lse(x, y.detach(), 2.0, pair_offset=1, exclude_pair=True),
            ops.similarity_lse_both(x, y, scale),
            ops.similarity_softplus(x, y, scale, scale),
        ):
            sum(output.sum() for output in outputs).backward()
        ops.similarity_topk(x, y, 3, normalize=True)
        ops.sinkhorn(y, 0.05, 3)
        ops.sinkhorn_potentials(y, 0.05, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ops(dtype, pretend):
    call_ops(pretend, dtype)


@pytest.mark.parametrize("labels", [False, True])
def test_memories(labels, pretend):
    queue, bank = MemoryQueue(K, D, labels=labels).to("cuda"), MemoryBank(K, D).to("cuda")
    keys, indices = rows().detach(), torch.arange(N, device="cuda")
    with pretend.no_waiting():
        for _ in range(4):
            queue.enqueue(keys, classes() if labels else None)
        bank.update(indices, keys)
        bank(indices)
        bank.sample(5, exclude=indices)


def test_averages_and_optimiser(pretend):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("cuda")
    ema = EMA(model, 0.9, schedule=10).to("cuda")
    half = EMA(model.bfloat16(), 0.9).to("cuda")
    m = torch.full((), 0.5, device="cuda")
    for capturable in (False, True):
        optimizer = LARS(model.parameters(), 0.1, weight_decay=1e-4, capturable=capturable)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        with pretend.no_waiting():
            for step in range(2):
                set_lr(optimizer, 0.1 * step)
                optimizer.step()
                ema.update(model)
                ema.follow(model, m)
                half.update(model)


WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x.sum()),
    "index": lambda x: [1, 2, 3][x.sum().long()],
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=True),
    "copy to the host": lambda x: torch.ones(N, D).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.__setitem__(x > 0, x[0]),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique rows": lambda x: x.unique(dim=0),
    "equal": lambda x: torch.equal(x, x),
    "bincount": lambda x: torch.bincount(x[0].long()),
    "repeats": lambda x: x.repeat_interleave(x[:, 0].long(), dim=0),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "new_tensor": lambda x: x.new_tensor(1.0),
    "from the host": lambda x: torch.ones(3).to("cuda"),
    "cuda": lambda x: torch.ones(3).cuda(),
    "copy from the host": lambda x: x.copy_(torch.ones(N, D)),
    "index of the host": lambda x: x[torch.arange(2)],
    "list": lambda x: x[[0, 1]],
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_found(name, pretend):
    x = rows().detach()
    with pytest.raises(HostWaits), pretend.no_waiting():
        WAITS[name](x)


def test_what_waits_in_a_backward_is_found(pretend):
    class Impatient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, d):
            return d * d.sum().item()

    with pretend.no_waiting(), pytest.raises(HostWaits):
        Impatient.apply(rows()).sum().backward()


def test_what_does_not_wait_passes(pretend):
    x = rows().detach()
    with pretend.no_waiting():
        torch.ones(N, D).to("cuda", non_blocking=True)
        x[x > 0] = 0.0
        x[torch.arange(2, device="cuda")] += 1
        x.repeat_interleave(2, dim=0)
        torch.zeros((), device=x.device).fill_(3.0)
        assert x.device == torch.device("cuda", 0)
        assert x.is_cuda
