"""``fastssl.compat.timm`` against timm."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from fastssl.compat.timm import ModelEmaV3
from tests.compat.agreement import peer


def timm():
    return peer("timm.utils", "timm").ModelEmaV3


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).to(dtype)


def train(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter))
    model(torch.rand(8, 6).to(model[0].weight))


def test_has_timms_signature():
    mine, theirs = (inspect.signature(c).parameters.values() for c in (ModelEmaV3, timm()))
    assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(decay=0.9, update_after_step=2),
        dict(decay=0.8, min_decay=0.4, use_warmup=True, warmup_gamma=2.0, warmup_power=0.75),
        dict(decay=0.7, exclude_buffers=True),
        dict(decay=0.7, foreach=False, device="cpu"),
        dict(decay=0.7, dtype=torch.float64),
    ],
    ids=str,
)
def test_is_timms(options):
    model = network()
    mine, theirs = ModelEmaV3(model, **options), timm()(model, **options)
    for step in (None, 0, 1, 2, 3, 4, 50):
        train(model)
        for ema in (mine, theirs):
            ema.update(model, step)
        assert mine.get_decay(step) == theirs.get_decay(step)
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    x = torch.rand(3, 6, dtype=options.get("dtype"))
    torch.testing.assert_close(mine(x), theirs(x))
    theirs.load_state_dict(mine.state_dict())
    for ema in (mine, theirs):
        ema.set(model)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], not 1.5"):
        mine.apply_update_(model, 1.5)


def test_low_precision():
    """float32 averages are timm's; bfloat16 ones move in expectation; by one seed repeatably."""
    model = network(torch.bfloat16)
    options = dict(decay=0.999, dtype=torch.float32)
    mine, theirs = ModelEmaV3(model, **options), timm()(model, **options)
    train(model)
    for ema in (mine, theirs):
        ema.update(model)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())

    wide = nn.Linear(4096, 1, bias=False).bfloat16()
    nn.init.ones_(wide.weight)
    averages = [ModelEmaV3(wide, 0.999) for _ in range(2)]
    still = ModelEmaV3(wide, 0.999, stochastic_rounding=False)
    nn.init.constant_(wide.weight, 1.5)
    for _ in range(100):
        for ema in (*averages, still):
            ema.update(wide)
    weight = averages[0].module.weight
    assert torch.equal(weight, averages[1].module.weight)
    assert (still.module.weight == 1).all()
    expected = 1.5 - 0.5 * 0.999**100
    assert abs(weight.double().mean().item() - expected) < 0.003
    assert weight.unique().numel() > 2


def test_tied_parameters_move_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    ema = ModelEmaV3(model, 0.5)
    start = copy.deepcopy(model[0].weight.detach())
    with torch.no_grad():
        model[0].weight.add_(2)
    ema.update(model)
    torch.testing.assert_close(ema.module[0].weight, start + 1, check_dtype=False)
