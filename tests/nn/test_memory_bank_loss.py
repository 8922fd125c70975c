"""``NTXentLoss(memory_bank_size=(K, D))`` against lightly's, step by step."""

from __future__ import annotations

import copy

import pytest
import torch

from fastssl import NTXentLoss
from tests.compat.agreement import agrees, peer, views


def lightly(temperature, size):
    return peer("lightly.loss", "lightly").NTXentLoss(temperature, memory_bank_size=size)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("size", "batch"), [(24, 8), (8, 8), (64, 4)])
def test_is_lightlys_over_many_steps(temperature, size, batch):
    """Whole batches fill the bank, so that lightly drops nothing where it wraps."""
    mine = NTXentLoss(temperature, memory_bank_size=(size, 12))
    theirs = lightly(temperature, (size, 12)).double()
    theirs.memory_bank.bank.copy_(mine.memory_bank.rows)
    for step in range(2 * size // batch + 1):
        agrees(mine, theirs, *views(batch, 12, seed=step))  # gradients after keys have entered
        torch.testing.assert_close(mine.memory_bank.rows.double(), theirs.memory_bank.bank)


def test_the_bank_stays_where_no_gradient_is_needed():
    loss = NTXentLoss(memory_bank_size=(24, 12))
    before = copy.deepcopy(loss.state_dict())
    z0, z1 = views(8, 12)
    loss(z0.detach(), z1)
    torch.testing.assert_close(loss.state_dict(), before, rtol=0, atol=0)
    loss(z0.detach().requires_grad_(), z1)
    assert loss.state_dict()["memory_bank.position"] == 8


def test_a_batch_that_passes_the_end_loses_nothing():
    loss = NTXentLoss(memory_bank_size=(10, 12))
    for seed in (0, 1):
        z0, z1 = views(6, 12, seed=seed)
        loss(z0.detach().requires_grad_(), z1)
    keys = torch.nn.functional.normalize(z1.detach().float())
    torch.testing.assert_close(loss.memory_bank.rows[6:], keys[:4])
    torch.testing.assert_close(loss.memory_bank.rows[:2], keys[4:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    loss = NTXentLoss(memory_bank_size=(24, 12))
    z0, z1 = (x.detach().to(dtype).requires_grad_() for x in views(8, 12))
    rows = loss.memory_bank.rows.to(dtype).double()
    expected = NTXentLoss(memory_bank_size=(24, 12)).double()
    expected.memory_bank.rows.copy_(rows)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(
        loss(z0, z1).double(), expected(z0.double(), z1.double()), rtol=tolerance, atol=tolerance
    )


def test_sizes():
    assert NTXentLoss(memory_bank_size=0).state_dict() == {}
    for size in (4096, (4096,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"memory_bank_size must be \(K, D\) or 0, not"):
            NTXentLoss(memory_bank_size=size)
    with pytest.raises(ValueError, match="dim must be positive, not 0"):
        NTXentLoss(memory_bank_size=(4, 0))
