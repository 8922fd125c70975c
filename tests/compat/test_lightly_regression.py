"""``fastssl.compat.lightly``'s losses without negatives, and its memory bank, against lightly's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import lightly as compat
from tests.compat.agreement import DTYPES, agrees, peer, views

SHAPES = [(4, 3), (7, 5), (24, 16), (6, 40), (130, 64)]
LOSSES = {
    "NegativeCosineSimilarity": [(), (1, 0.5)],
    "BarlowTwinsLoss": [(), (0.1,)],
    "VICRegLoss": [(), (1.0, 3.0, 2.0), (25.0, 25.0, 1.0, False, 0.1)],
}


def lightly():
    return peer("lightly.loss", "lightly")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_is_lightlys(name, shape):
    for arguments in LOSSES[name]:
        mine, theirs = (getattr(m, name)(*arguments) for m in (compat, lightly()))
        for dtype in DTYPES:
            agrees(mine, theirs, *views(*shape, dtype))


def test_more_dimensions():
    z0, z1 = (torch.randn(6, 3, 2, 5) for _ in range(2))
    agrees(compat.VICRegLoss(), lightly().VICRegLoss(), z0, z1)
    for dim in (0, 2, -1):
        mine, theirs = (m.NegativeCosineSimilarity(dim=dim) for m in (compat, lightly()))
        agrees(mine, theirs, z0, z1)
    agrees(compat.NegativeCosineSimilarity(), lightly().NegativeCosineSimilarity(), z0, z1[:1])


def test_norms_below_eps_are_lightlys():
    z0, z1 = views(5, 4)
    z0[1:3] *= 1e-9
    z1[2:4] *= 1e-10
    agrees(compat.NegativeCosineSimilarity(), lightly().NegativeCosineSimilarity(), z0, z1)


def test_a_variance_of_one_row_is_an_error_as_in_lightly():
    z = torch.randn(1, 4)
    for name, error in (("BarlowTwinsLoss", ValueError), ("VICRegLoss", AssertionError)):
        with pytest.raises(error):
            getattr(lightly(), name)()(z, z)
        with pytest.raises(ValueError, match="at least two rows"):
            getattr(compat, name)()(z, z)
    with pytest.raises(ValueError, match="one shape"):
        compat.VICRegLoss()(torch.randn(3, 2, 4), torch.randn(3, 2, 5))


@pytest.mark.parametrize("feature_dim_first", [True, False])
@pytest.mark.parametrize("size", [16, 37, 5], ids=lambda k: f"K={k}")
def test_bank_is_lightlys(size, feature_dim_first):
    """Over several batches: what is given, and what a wrap or too large a batch loses."""
    theirs_class = peer("lightly.models.modules.memory_bank", "lightly").MemoryBankModule
    mine, theirs = (
        c((size, 4), feature_dim_first=feature_dim_first)
        for c in (compat.MemoryBankModule, theirs_class)
    )
    theirs.bank.copy_(mine.bank)
    assert mine.state_dict() == theirs.state_dict() == {}
    torch.testing.assert_close(mine.bank.norm(dim=1), torch.ones(size))
    for step, n in enumerate([8, 8, 7, 1, 8, 3, 40, 8]):
        output = torch.randn(n, 4, requires_grad=True)
        update = step != 2
        (out, bank), (right, expected) = (m(output, None, update=update) for m in (mine, theirs))
        assert out is output is right
        assert bank.shape == ((4, size) if feature_dim_first else (size, 4))
        assert torch.equal(bank, expected)
        assert not bank.requires_grad
        assert torch.equal(mine.bank, theirs.bank)
        assert mine.bank_ptr == theirs.bank_ptr


def test_no_bank_and_wrong_sizes():
    output = torch.randn(3, 4)
    for size in (0, (0, 4)):
        assert compat.MemoryBankModule(size)(output, update=True) == (output, None)
    for size in (5, (5,), (5, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="memory bank's size must be"):
            compat.MemoryBankModule(size)


def test_a_loss_derived_from_the_bank():
    """As lightly's documentation has it."""

    class Loss(compat.MemoryBankModule):
        def forward(self, output, labels=None):
            output, negatives = super().forward(output, update=True)
            return (F.normalize(output) @ negatives).logsumexp(1).mean()

    loss = Loss((8, 4))
    output = torch.randn(3, 4, requires_grad=True)
    loss(output).backward()
    assert output.grad.any()
    assert torch.equal(loss.bank[:3], output.detach())
