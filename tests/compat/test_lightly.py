"""``fastssl.compat.lightly`` against lightly, and against the formulas."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import lightly as compat
from tests.compat.agreement import DTYPES, SHAPES, TEMPERATURES, agrees, peer, views

LOSSES = {
    "NTXentLoss": {},
    "DCLLoss": {},
    "DCLWLoss": {"sigma": 0.7},
    "MACLLoss": {"alpha": 0.6, "A_0": 0.1},
}


def lightly():
    return peer("lightly.loss", "lightly")


def far(out0, out1):
    """A weight that the two directions disagree about, and that has a gradient."""
    return 0.3 + out0[:, 0] ** 2 + (out0 - out1).pow(2).sum(dim=1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_is_lightlys(name, shape, temperature):
    mine = getattr(compat, name)(temperature, **LOSSES[name])
    theirs = getattr(lightly(), name)(temperature, **LOSSES[name])
    for dtype in DTYPES:
        agrees(mine, theirs, *views(*shape, dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_lightlys(name):
    z0, z1 = views(24, 16)
    agrees(getattr(compat, name)(), getattr(lightly(), name)(), z0, z1)


def test_weight_function_is_lightlys():
    for dtype, temperature in ((torch.float32, 0.07), (torch.float32, 0.5)):
        mine = compat.DCLLoss(temperature, weight_fn=far)
        agrees(mine, lightly().DCLLoss(temperature, weight_fn=far), *views(33, 20, dtype))


@pytest.mark.parametrize("size", [16, 37, 5], ids=lambda k: f"K={k}")
def test_bank_is_lightlys(size):
    """Over several batches: negatives, order, and what a wrap loses."""
    mine = compat.NTXentLoss(0.2, memory_bank_size=(size, 12))
    theirs = lightly().NTXentLoss(0.2, memory_bank_size=(size, 12)).double()
    theirs.memory_bank.bank.copy_(mine.memory_bank.bank)
    for step, n in enumerate([8, 8, 7, 1, 8, 3, 8, 8]):
        agrees(mine, theirs, *views(n, 12, seed=step))
        assert mine.memory_bank.bank_ptr == theirs.memory_bank.bank_ptr
        torch.testing.assert_close(mine.memory_bank.bank.double(), theirs.memory_bank.bank)


def test_formulas():
    t = 0.2
    z0, z1 = views(13, 7)

    def logits(out0, out1):
        z = F.normalize(torch.cat([out0, out1]), dim=1)
        return z @ z.T / t

    pair = torch.arange(26).roll(13)

    def nt_xent(out0, out1):
        return F.cross_entropy(logits(out0, out1).fill_diagonal_(float("-inf")), pair)

    def negatives(out0, out1):
        s = logits(out0, out1).fill_diagonal_(float("-inf"))
        return s.scatter(1, pair[:, None], float("-inf")).logsumexp(dim=1)

    def dcl(weight):
        def loss(out0, out1):
            a, b = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
            weights = torch.cat([weight(a, b), weight(b, a)])
            positive = (a * b).sum(dim=1).repeat(2) / t
            return (negatives(out0, out1) - weights * positive).mean()

        return loss

    def mises_fisher(a, b):
        return 2 - len(a) * ((a * b).sum(dim=1).detach() / 0.5).softmax(dim=0)

    agrees(compat.NTXentLoss(t), nt_xent, z0, z1)
    agrees(compat.DCLLoss(t), dcl(lambda a, b: torch.ones(len(a))), z0, z1)
    agrees(compat.DCLLoss(t, weight_fn=far), dcl(far), z0, z1)
    agrees(compat.DCLWLoss(t), dcl(mises_fisher), z0, z1)
    agrees(compat.DCLLoss(t, compat.negative_mises_fisher_weights), dcl(mises_fisher), z0, z1)


def test_model_aware_formula():
    def macl(out0, out1):
        z = F.normalize(torch.cat([out0, out1]), dim=1)
        cosines = z @ z.T
        pair = torch.arange(len(z)).roll(len(out0))
        alignment = cosines.gather(1, pair[:, None]).mean().detach()
        t = 0.1 * (1 + 0.5 * (alignment - 0.2))
        logits = (cosines / t).fill_diagonal_(float("-inf"))
        loss = F.cross_entropy(logits, pair, reduction="none")
        return (loss / (1 - torch.exp(-loss.detach()) + 1e-8)).mean()

    agrees(compat.MACLLoss(A_0=0.2), macl, *views(20, 9))


def test_bank_formula():
    loss = compat.NTXentLoss(0.2, memory_bank_size=(10, 6))
    bank = loss.memory_bank.bank.clone()
    expected = bank.clone()
    z0, z1 = views(4, 6)

    def info_nce(out0, out1):
        q, k = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.to(q).T], dim=1) / 0.2
        return F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))

    agrees(loss, info_nce, z0, z1)
    expected[:4] = F.normalize(z1, dim=1)
    torch.testing.assert_close(loss.memory_bank.bank, expected)
    loss(z0, z1)  # asks for no gradient, as in evaluation: nothing enters
    torch.testing.assert_close(loss.memory_bank.bank, expected)
    assert loss.memory_bank.bank_ptr == 4
    loss(z0.requires_grad_(), z1 + 1)
    loss(z0, z1 - 1)  # 12 > 10: two rows are lost, and the next batch begins at the top
    expected[4:8], expected[8:] = F.normalize(z1 + 1, dim=1), F.normalize(z1 - 1, dim=1)[:2]
    torch.testing.assert_close(loss.memory_bank.bank, expected)
    assert loss.memory_bank.bank_ptr == 0


def test_bank_changes_after_the_loss_and_before_the_backward():
    loss = compat.NTXentLoss(0.2, memory_bank_size=(10, 6))
    z0, z1 = views(10, 6)
    gradients = []
    for patient in (True, False):
        one, leaf = copy.deepcopy(loss), z0.clone().requires_grad_()
        value = one(leaf, z1)
        if not patient:
            one(leaf, z1.flip(0))
        gradients.append(torch.autograd.grad(value, leaf)[0])
    assert torch.equal(*gradients)


def test_compiles_with_its_bank():
    eager = compat.NTXentLoss(0.2, memory_bank_size=(10, 6))
    traced = copy.deepcopy(eager)
    step = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        z0, z1 = (z.requires_grad_() for z in views(4, 6))
        torch.testing.assert_close(step(z0, z1), eager(z0, z1))
        torch.testing.assert_close(traced.memory_bank.bank, eager.memory_bank.bank)
        assert traced.memory_bank.bank_ptr == eager.memory_bank.bank_ptr


def test_state_dict_is_lightlys():
    for size in (0, (10, 6)):
        assert compat.NTXentLoss(memory_bank_size=size).state_dict() == {}
    assert {"bank", "bank_ptr"} <= dict(compat.MemoryBankModule((10, 6)).named_buffers()).keys()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="temperature must be at least 1e-8, not 0"):
        compat.NTXentLoss(0)
    for size in (5, (5,), (5, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="memory bank's size must be"):
            compat.NTXentLoss(memory_bank_size=size)
    with pytest.raises(ValueError, match="alpha must lie in"):
        compat.MACLLoss(alpha=2)
