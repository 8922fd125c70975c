"""similarity_lse_loss: softplus of differences of logits, with all their digits."""

from __future__ import annotations

import pytest
import torch

from fastssl import reference
from fastssl.ops import similarity_lse_loss

raw = torch.ops.fastssl


def logits(n=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair, lse, other = 40 * torch.randn(3, n, generator=generator, dtype=torch.float64)
    lse[3] = float("-inf")  # a row without negatives
    return pair, lse, other


@pytest.mark.parametrize("both", [False, True])
def test_is_the_cross_entropy(both):
    leaves = [t.requires_grad_() for t in logits()[: 3 if both else 2]]
    loss = similarity_lse_loss(*leaves)
    pair, *lses = leaves
    right = sum(torch.logaddexp(one, pair) - pair for one in lses).mean() / len(lses)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=0)
    for a, b in zip(*(torch.autograd.grad(one, leaves) for one in (loss, right)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


def test_a_positive_that_dominates_leaves_a_small_loss():
    pair, lse = torch.full((4,), 600.0).double(), torch.full((4,), 540.0).double()
    loss = similarity_lse_loss(pair, lse).double()
    torch.testing.assert_close(loss, torch.tensor(-60.0).double().exp(), rtol=1e-6, atol=0)


def test_the_raw_ops_are_the_reference_and_pass_opcheck():
    pair, lse, other = logits()
    for second in (None, other):
        leaves = [t.clone().requires_grad_() for t in (pair, lse, second) if t is not None]
        rows = reference.similarity_lse_loss(*leaves)
        loss = raw.similarity_lse_loss_fwd(pair, lse, second)
        torch.testing.assert_close(loss.double(), rows.mean(), rtol=1e-6, atol=0)
        found = raw.similarity_lse_loss_bwd(torch.tensor(3.0), pair, lse, second)
        right = torch.autograd.grad(3 * rows.mean(), leaves)
        for a, b in zip(found, right, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-14)
        torch.library.opcheck(raw.similarity_lse_loss_fwd, (pair, lse, second))
        torch.library.opcheck(raw.similarity_lse_loss_bwd, (torch.tensor(3.0), pair, lse, second))
