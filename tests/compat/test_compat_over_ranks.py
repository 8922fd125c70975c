"""Over several ranks: as one process with the whole batch, and with the peers' own gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.compat import lightly, open_clip, solo_learn
from fastssl.compat.gradcache import GradCache
from fastssl.compat.moco import MoCo
from tests.compat.agreement import peer
from tests.distributed.launch import launch
from tests.numerics import relative

N, D = 5, 8
NUMBERS = torch.tensor(5.0), torch.tensor(-2.0)  # scale and bias


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


def far(out0, out1):
    return 0.3 + out0[:, 0] ** 2 + (out0 - out1).pow(2).sum(dim=1)


def simclr(a, b, scale, bias):
    first = N * dist.get_rank() if dist.is_initialized() else 0
    return solo_learn.simclr_loss_func(
        torch.cat([a, b]), torch.arange(first, first + len(a)).repeat(2)
    )


def clip(local_loss, gather_with_grad, module=open_clip):
    def loss(*x, **numbers):
        settings = {"rank": rank(), "world_size": size()}
        return module.ClipLoss(local_loss, gather_with_grad, **settings)(*x, **numbers)

    return loss


def siglip(dist_impl, module=open_clip):
    return lambda *x: module.SigLipLoss(rank=rank(), world_size=size(), dist_impl=dist_impl)(*x)


def among_constants(a, b, scale, bias):
    """CLIP's loss where no feature learns as another's alternative."""
    target = torch.arange(len(a))
    images, texts = scale * a @ b.detach().T, scale * b @ a.detach().T
    return (F.cross_entropy(images, target) + F.cross_entropy(texts, target)) / 2


# Of two views' features, a scale and a bias.
LOSSES = {
    "NTXentLoss": lambda a, b, s, t: lightly.NTXentLoss(0.2, 0, True)(a, b),
    "DCLLoss": lambda a, b, s, t: lightly.DCLLoss(0.2, None, True)(a, b),
    "DCLLoss, weighted": lambda a, b, s, t: lightly.DCLLoss(0.2, far, True)(a, b),
    "simclr_loss_func": simclr,
    "nnclr_loss_func": lambda a, b, s, t: solo_learn.nnclr_loss_func(a, b),
    "ClipLoss, gather_with_grad": clip(False, True),
    "ClipLoss, both": clip(True, True),
    "ClipLoss": clip(False, False),  # 1/W of the features' gradient
    "ClipLoss, local_loss": clip(True, False),
    **{f"SigLipLoss, {way}": siglip(way) for way in ("bidir", "shift", "gather")},
}


def features(first, last, dtype=torch.float32):
    """Normalised features of two views of the samples of these ranks, and the numbers."""
    parts = []
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        z0 = torch.randn(N, D, generator=generator)
        parts.append((z0, z0 + torch.randn(N, D, generator=generator)))
    views = [F.normalize(torch.cat(view), dim=1) for view in zip(*parts, strict=True)]
    return [x.to(dtype) for x in (*views, *NUMBERS)]


def evaluate(loss, tensors):
    """The value, the gradients of both features, and those of scale and bias."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = loss(*leaves)
    d = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), d[:2], d[2:]


def averaged(x):
    """The mean over ranks, as DistributedDataParallel takes it."""
    total = x.double().clone()
    dist.all_reduce(total)
    return total / size()


def compare(name, mine, value, d_features, d_numbers):
    assert relative(mine[0], value) <= 1e-6, name
    for a, b in zip(mine[1], d_features, strict=True):
        assert relative(a, b) <= 1e-5, name
    for a, b in zip(mine[2], d_numbers, strict=True):
        assert relative(averaged(a), b, floor=1e-3) <= 1e-5, name


def as_one(expected):
    own = slice(N * rank(), N * rank() + N)
    for name, loss in LOSSES.items():
        value, d_features, d_numbers = expected[name]
        factor = 1 if name == "ClipLoss" else size()
        right = [factor * d[own] for d in d_features]
        compare(name, evaluate(loss, features(rank(), rank() + 1)), value, right, d_numbers)

    with pytest.raises(ValueError, match="world_size must be that of the process group"):
        open_clip.ClipLoss(world_size=size() + 1)(*features(0, 1))
    same = torch.arange(N).repeat(2)  # as of classes, which other ranks have too
    with pytest.raises(ValueError, match="all rows of a sample must be on one rank"):
        solo_learn.simclr_loss_func(torch.cat(features(0, 1)[:2]), same)


def test_as_one_process():
    ranks = 3
    whole = features(0, ranks, torch.float64)
    expected = {name: evaluate(loss, whole) for name, loss in LOSSES.items()}
    expected["ClipLoss, local_loss"] = evaluate(among_constants, whole)
    launch(as_one, ranks, expected)


def as_theirs():
    theirs = peer("lightly.loss", "lightly")
    clips = peer("open_clip.loss", "open_clip_torch")
    two = lambda loss: lambda a, b, s, t: loss(a, b)  # noqa: E731
    pairs = {
        name: (two(getattr(lightly, name)(0.2, **kw)), two(getattr(theirs, name)(0.2, **kw)))
        for name, kw in (
            ("NTXentLoss", {"gather_distributed": True}),
            ("DCLLoss", {"gather_distributed": True}),
            ("DCLLoss", {"gather_distributed": True, "weight_fn": far}),
            ("DCLWLoss", {"gather_distributed": True}),
        )
    }
    for options in ((False, False), (False, True), (True, False), (True, True)):
        pairs[f"ClipLoss{options}"] = clip(*options), clip(*options, clips)
    for way in ("bidir", "shift", "gather"):
        pairs[f"SigLipLoss({way})"] = siglip(way), siglip(way, clips)
    for name, (mine, package) in pairs.items():
        value, d_features, d_numbers = evaluate(
            package, features(rank(), rank() + 1, torch.float64)
        )
        ours = evaluate(mine, features(rank(), rank() + 1))
        compare(name, ours, averaged(value), d_features, list(map(averaged, d_numbers)))

    mine = lightly.NTXentLoss(0.2, (16, D), True)
    package = theirs.NTXentLoss(0.2, (16, D), True).double()
    dist.broadcast(mine.memory_bank.bank, 0)
    package.memory_bank.bank.copy_(mine.memory_bank.bank)
    for _ in range(3):
        right = evaluate(two(package), features(rank(), rank() + 1, torch.float64))
        compare("bank", evaluate(two(mine), features(rank(), rank() + 1)), *right)
        torch.testing.assert_close(mine.memory_bank.bank.double(), package.memory_bank.bank)


def test_as_the_peers():
    peer("lightly.loss", "lightly")
    peer("open_clip.loss", "open_clip_torch")
    launch(as_theirs, 2)


class Encoder(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.body, self.fc = nn.Linear(D, 6), nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(self.body(x).tanh())


def moco_and_gradcache(states, images, queue, inputs, gradients):
    own = slice(N * rank(), N * rank() + N)
    model = MoCo(Encoder, dim=4, K=24)
    model.load_state_dict(states)
    model(*(x[own] for x in images))
    torch.testing.assert_close(model.queue, queue)  # the keys of all ranks, in their order

    towers = [DistributedDataParallel(copy.deepcopy(tower)) for tower in inputs[0]]
    cache = GradCache(towers, [2, 3], clip(True, True))
    kinds = [x[own] for x in inputs[1]], [{"x": x[own]} for x in inputs[1]]
    for kind in kinds:
        for tower in towers:
            tower.zero_grad()
        cache(*kind, no_sync_except_last=True, logit_scale=5.0, logit_bias=None)
        mine = [p.grad for tower in towers for p in tower.parameters()]
        for a, b in zip(mine, gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_moco_and_gradcache_as_one_process():
    model = MoCo(Encoder, dim=4, K=24)
    states, images = copy.deepcopy(model.state_dict()), torch.randn(2, 2 * N, D).unbind()
    model(*images)
    towers, inputs = [Encoder(), Encoder()], torch.randn(2, 2 * N, D).unbind()
    copies = copy.deepcopy(towers)
    clip(True, True)(*(t(x) for t, x in zip(copies, inputs, strict=True)), 5.0, None).backward()
    gradients = [p.grad for tower in copies for p in tower.parameters()]
    launch(moco_and_gradcache, 2, states, images, model.queue, (towers, inputs), gradients)
