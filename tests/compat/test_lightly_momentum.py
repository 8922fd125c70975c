"""lightly's momentum helpers, against lightly's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.compat.lightly import (
    activate_requires_grad,
    deactivate_requires_grad,
    update_momentum,
)
from tests.compat.agreement import peer


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


@pytest.mark.parametrize("m", [0.0, 0.9, 0.996, 1.0])
def test_is_lightlys(m):
    utils = peer("lightly.models.utils", "lightly")
    model, mine = network(), network()
    theirs = copy.deepcopy(mine)
    model(torch.rand(4, 6))  # statistics, which stay
    update_momentum(model, mine, m)
    utils.update_momentum(model, theirs, m=m)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())


def test_requires_grad():
    model = network()
    deactivate_requires_grad(model)
    assert not any(p.requires_grad for p in model.parameters())
    activate_requires_grad(model)
    assert all(p.requires_grad for p in model.parameters())


def test_errors():
    with pytest.raises(ValueError, match="2 targets need as many sources, not 6"):
        update_momentum(network(), nn.Linear(6, 5), 0.9)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], not 1.5"):
        update_momentum(network(), network(), 1.5)
