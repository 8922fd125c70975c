"""A step of W ranks under DistributedDataParallel is that of one with the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastssl
from fastssl.functional import (
    barlow_twins_loss,
    byol_loss,
    clip_loss,
    dcl,
    dclw,
    dino_loss,
    ibot_patch_loss,
    info_nce,
    koleo_loss,
    multi_view_nt_xent,
    nnclr,
    nt_xent,
    redundancy,
    siglip_loss,
    simsiam_loss,
    sup_con,
    swav_loss,
    vicreg_loss,
)
from tests.distributed.launch import launch
from tests.numerics import relative

SAMPLES = [6, 3, 5, 4]  # on each rank
VIEWS, WIDTH, DIM = 3, 12, 8


class Encoder(nn.Module):
    """Views [n, WIDTH] to embeddings [n, DIM] each, beside a temperature and a bias that learn."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, DIM))
        self.log_temperature = nn.Parameter(torch.tensor(-1.2))
        self.bias = nn.Parameter(torch.tensor(-0.5))

    def forward(self, *views):
        # Every parameter takes part in every loss: a plain reducer waits for all of them.
        unused = 0 * (self.bias + self.log_temperature)
        return *(self.layers(v) + unused for v in views), self.log_temperature.exp(), self.bias


class Batch:
    """The samples of some ranks."""

    def __init__(self, ranks):
        parts = [self.part(rank) for rank in ranks]
        *views, self.labels, self.weights, self.negatives, self.number = map(
            torch.cat, zip(*parts, strict=True)
        )
        self.views = views

    def part(self, rank):
        n, g = SAMPLES[rank], torch.Generator().manual_seed(rank)
        image = torch.randn(n, WIDTH, generator=g)
        views = [image + 0.7 * torch.randn(n, WIDTH, generator=g) for _ in range(VIEWS)]
        labels = torch.randint(0, 4, (n,), generator=g)
        own = torch.rand(n, generator=g), torch.randn(n, 5, DIM, generator=g)
        return *views, labels, *own, 10 * rank + torch.arange(n)


QUEUE = torch.randn(40, DIM, generator=torch.Generator().manual_seed(99))


def by_number(*views):
    """As rows of one tensor, the last views first."""
    return torch.cat(views[::-1])


def unit(*views):
    return [F.normalize(v, dim=1) for v in views]


def wide(a):
    """More features than rows."""
    return (a[:, :, None] * a[:, None]).flatten(1)


# From views' embeddings, temperature, bias, a batch and the group, to a loss.
LOSSES = {
    "nt_xent": lambda a, b, c, t, bias, batch, **over: nt_xent(a, b, t, **over),
    "nt_xent, sum": lambda a, b, c, t, bias, batch, **over:
        nt_xent(a, b, t, normalize=False, reduction="sum", **over),
    "info_nce": lambda a, b, c, t, bias, batch, **over: info_nce(a, b, None, t, **over),
    "info_nce, momentum keys": lambda a, b, c, t, bias, batch, **over:
        info_nce(a, b.detach(), None, t, **over),
    "info_nce, both ways": lambda a, b, c, t, bias, batch, **over:
        info_nce(a, b, None, t, symmetric=True, **over),
    "info_nce, queue": lambda a, b, c, t, bias, batch, **over: info_nce(a, b, QUEUE, t, **over),
    "info_nce, own negatives": lambda a, b, c, t, bias, batch, **over:
        info_nce(a, b, batch.negatives, t, **over),
    "nnclr": lambda a, b, c, t, bias, batch, **over: nnclr(a, b, QUEUE, t, **over),
    "dcl": lambda a, b, c, t, bias, batch, **over: dcl(a, b, t, **over),
    "dcl, weights": lambda a, b, c, t, bias, batch, **over:
        dcl(a, b, t, weights=batch.weights, **over),
    "dclw": lambda a, b, c, t, bias, batch, **over: dclw(a, b, t, **over),
    "clip": lambda a, b, c, t, bias, batch, **over:
        clip_loss(*unit(a, b), 1 / t, logit_bias=bias, **over),
    "siglip": lambda a, b, c, t, bias, batch, **over:
        siglip_loss(*unit(a, b), 1 / t, logit_bias=bias, **over),
    "sup_con": lambda a, b, c, t, bias, batch, **over:
        sup_con(a, batch.labels, t, normalize=True, **over),
    "sup_con, two views": lambda a, b, c, t, bias, batch, **over:
        sup_con(torch.stack(unit(a, b), 1), batch.labels, t, 0.07, **over),
    "sup_con, three views": lambda a, b, c, t, bias, batch, **over:
        sup_con(torch.stack(unit(a, b, c), 1), batch.labels, t, **over),
    "sup_con, one": lambda a, b, c, t, bias, batch, **over:
        sup_con(torch.stack(unit(a, b, c), 1), batch.labels, t, contrast_mode="one", **over),
    "sup_con, no labels": lambda a, b, c, t, bias, batch, **over:
        sup_con(torch.stack(unit(a, b, c), 1), None, t, **over),
    "multi_view": lambda a, b, c, t, bias, batch, **over:
        multi_view_nt_xent([a, b, c], None, t, **over),
    "multi_view, indexes": lambda a, b, c, t, bias, batch, **over:
        multi_view_nt_xent(by_number(a, b, c), batch.number.repeat(3), t, **over),
    "multi_view, uneven": lambda a, b, c, t, bias, batch, **over:
        multi_view_nt_xent(torch.cat([a, b, c[batch.number % 2 == 0]]),
                           torch.cat([batch.number.repeat(2), batch.number[batch.number % 2 == 0]]),
                           t, **over),
    "swav": lambda a, b, c, t, bias, batch, ring=False, **over: swav_loss([a, b, c], **over),
    "swav, queue": lambda a, b, c, t, bias, batch, ring=False, **over:
        swav_loss(torch.stack([a, b, c]), assign=(0, 2), **over,
                  queue_scores=[batch.negatives.flatten(0, 1), batch.negatives[:, 0]]),
    "dino": lambda a, b, c, t, bias, batch, ring=False, **over:
        dino_loss([a, b, c], [a, b], QUEUE[0], **over),
    "dino, sinkhorn": lambda a, b, c, t, bias, batch, ring=False, **over:
        dino_loss([a, b, c], [a, b], assignment="sinkhorn", **over),
    "dino, features": lambda a, b, c, t, bias, batch, ring=False, **over:
        dino_loss([a, b, c], [a, b], prototypes=(QUEUE, QUEUE), **over),
    "ibot": lambda a, b, c, t, bias, batch, ring=False, **over:
        ibot_patch_loss(a, b, QUEUE[0], images=batch.number // 2, **over),
    "ibot, counted": lambda a, b, c, t, bias, batch, ring=False, **over:
        ibot_patch_loss(a, b, images=batch.number // 2, num_images=len(a), **over),
    "ibot, sinkhorn": lambda a, b, c, t, bias, batch, ring=False, **over:
        ibot_patch_loss(a, b, assignment="sinkhorn", **over),
    "koleo": lambda a, b, c, t, bias, batch, ring=False, **over: koleo_loss(a, **over),
    "byol": lambda a, b, c, t, bias, batch, ring=False, **over: byol_loss(a, b, c, b, **over),
    "simsiam": lambda a, b, c, t, bias, batch, ring=False, **over:
        simsiam_loss(a, b, c, b, reduction="sum", **over),
    "barlow_twins": lambda a, b, c, t, bias, batch, ring=False, **over:
        barlow_twins_loss(a.double(), b.double(), 0.1, **over),
    "barlow_twins, wide": lambda a, b, c, t, bias, batch, ring=False, **over:
        barlow_twins_loss(wide(a), wide(b), 0.1, **over),
    "vicreg": lambda a, b, c, t, bias, batch, ring=False, **over:
        vicreg_loss(a, b, covariance=9, **over),
    "vicreg, wide": lambda a, b, c, t, bias, batch, ring=False, **over:
        vicreg_loss(wide(a), wide(b), covariance=9, **over),
}  # fmt: skip


def step(model, name, batch, **over):
    """The loss, and the gradients and parameters of one step."""
    encoder = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    loss = LOSSES[name](*model(*batch.views), batch=batch, **over)
    loss.backward()
    optimizer.step()
    return loss.detach(), [p.grad for p in encoder.parameters()], list(encoder.parameters())


def steps_are_those_of_one():
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    fresh = Encoder()
    mine, everyones = Batch([rank]), Batch(range(size))
    model = DistributedDataParallel(copy.deepcopy(fresh))
    for name in LOSSES:
        loss, gradients, weights = step(copy.deepcopy(fresh), name, everyones)
        for ring in (False, True):
            model.module.load_state_dict(fresh.state_dict())
            model.zero_grad()
            value, d_mine, w_mine = step(model, name, mine, group=True, ring=ring)
            case = f"{name}, ring={ring}"
            assert relative(value, loss) < 1e-6, case
            norm = torch.cat([d.flatten() for d in gradients]).norm().item()
            # Some cancel to a rounding of others, as a bias's does where a mean is taken off, and
            # the temperature's of nnclr here: 0.034 left of shares of 0.55 in all.
            cancelling = name.startswith(("barlow", "vicreg", "nnclr"))
            floor = (0.1 if cancelling else 0.01) * norm
            for a, b in zip(d_mine, gradients, strict=True):
                assert relative(a, b, floor=floor) < 1e-6, case
            for a, b in zip(w_mine, weights, strict=True):
                assert relative(a, b) < 1e-6, case


def rows_are_those_of_one():
    rank, size = dist.get_rank(), dist.get_world_size()
    (a, b, _), (x, y, _) = Batch([rank]).views, Batch(range(size)).views
    start = sum(SAMPLES[:rank])
    mine = slice(start, start + SAMPLES[rank])
    for ring in (False, True):
        over = {"reduction": "none", "group": True, "ring": ring}
        rows = nt_xent(a, b, 0.3, **over).view(2, -1)
        assert relative(rows, nt_xent(x, y, 0.3, reduction="none").view(2, -1)[:, mine]) < 1e-6
        rows = info_nce(a, b, symmetric=True, **over)
        right = info_nce(x, y, symmetric=True, reduction="none")[mine]
        assert relative(rows, right) < 1e-6


def modules_are_the_functions():
    rank = dist.get_rank()
    mine = Batch([rank])
    a, b, c = mine.views
    for ring in (False, True):
        over = {"group": True, "ring": ring}
        lightlys = fastssl.NTXentLoss(0.3, gather_distributed=True, ring=ring)
        pairs = [
            (lightlys(a, b), nt_xent(a, b, 0.3, **over)),
            (fastssl.InfoNCELoss(0.3, **over)(a, b), info_nce(a, b, None, 0.3, **over)),
            (fastssl.CLIPLoss(**over)(a, b, 3.0), clip_loss(a, b, 3.0, **over)),
            (fastssl.SigLIPLoss(**over)(a, b, 3.0), siglip_loss(a, b, 3.0, **over)),
            (fastssl.NNCLRLoss(0.3, **over)(a, b, c), nnclr(a, b, c, 0.3, **over)),
            (fastssl.DCLLoss(0.3, **over)(a, b), dcl(a, b, 0.3, **over)),
            (fastssl.DCLWLoss(0.3, **over)(a, b), dclw(a, b, 0.3, **over)),
            (
                fastssl.SupConLoss(0.3, **over)(torch.stack([a, b], 1), mine.labels),
                sup_con(torch.stack([a, b], 1), mine.labels, 0.3, **over),
            ),
            (
                fastssl.MultiViewNTXentLoss(0.3, **over)([a, b, c]),
                multi_view_nt_xent([a, b, c], None, 0.3, **over),
            ),
        ]
        for module, function in pairs:
            assert torch.equal(module, function)
    for module, function in (
        (fastssl.BYOLLoss(group=True)(a, b, c, b), byol_loss(a, b, c, b, group=True)),
        (fastssl.SimSiamLoss(group=True)(a, b, c, b), simsiam_loss(a, b, c, b, group=True)),
        (fastssl.BarlowTwinsLoss(group=True)(a, b), barlow_twins_loss(a, b, group=True)),
        (fastssl.VICRegLoss(group=True)(a, b), vicreg_loss(a, b, group=True)),
    ):
        assert torch.equal(module, function)


def the_centre_is_that_of_all():
    rank, size = dist.get_rank(), dist.get_world_size()
    mine, everyones = Batch([rank]).views, Batch(range(size)).views
    for loss in (fastssl.DINOLoss(WIDTH, group=True), fastssl.IBOTPatchLoss(WIDTH, group=True)):
        views = mine[:2] if isinstance(loss, fastssl.DINOLoss) else mine[0]
        loss.update_center(views)
        right = torch.cat(everyones[:2]) if isinstance(views, list) else everyones[0]
        assert relative(loss.center, 0.1 * right.mean(0)) < 1e-6


def nothing_wrong_stays_silent():
    rank = dist.get_rank()
    a, b, _ = Batch([rank]).views
    with pytest.raises(ValueError, match="all rows of a sample must be on one rank"):
        multi_view_nt_xent(torch.cat([a, b]), torch.arange(len(a)).repeat(2), group=True)
    with pytest.raises(ValueError, match="at least one row"):
        nt_xent(*((a[:0], b[:0]) if rank == 1 else (a, b)), group=True)
    with pytest.raises(ValueError, match=r"rank 1: .* temperature: 0\.2"):
        nt_xent(a, b, 0.1 + 0.1 * rank, group=True)
    with pytest.raises(ValueError, match="rank 1: query: float64"):
        info_nce(a.double() if rank else a, b.double() if rank else b, group=True)
    with pytest.raises(ValueError, match=r"rank 1: .* lambd: 1\.1"):
        barlow_twins_loss(a, b, 0.1 + rank, group=True)
    assert barlow_twins_loss(a[:1], b[:1], group=True).isfinite()  # one row on each rank
    a[0, 0] = float("nan") if rank == 0 else 0
    assert vicreg_loss(a, b, group=True).isnan()
    for ring in (False, True):
        assert nt_xent(a, b, group=True, ring=ring).isnan()
        assert clip_loss(a, b, 3.0, group=True, ring=ring).isnan()
        assert sup_con(a, torch.arange(len(a)), group=True, ring=ring).isnan()


def cases():
    redundancy.TILE = 3  # some to a matrix
    steps_are_those_of_one()
    if dist.get_world_size() == 2:
        rows_are_those_of_one()
        modules_are_the_functions()
        the_centre_is_that_of_all()
        nothing_wrong_stays_silent()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_losses(size):
    launch(cases, size)
