"""Methods whose encoder another follows give it the same modules at each step: one plan serves."""

from __future__ import annotations

import pytest
import torch

from fastssl.methods import METHODS
from fastssl.nn import MomentumEncoder
from fastssl.nn.ema import _Plan
from fastssl.training import TrainConfig
from fastssl.training.run import build_method


def method_of(name):
    config = TrainConfig(method=name, encoder="small-cnn", head_hidden=8, head_out=8, batch_size=4)
    return build_method(config, (1, 16, 16), samples=512)


FOLLOWED = {"moco", "moco-v3", "byol", "dino"}


@pytest.mark.parametrize("name", sorted(FOLLOWED))
def test_one_plan_serves(name, monkeypatch):
    made, plain = [], _Plan.__init__
    monkeypatch.setattr(_Plan, "__init__", lambda self, *args: made.append(plain(self, *args)))
    method = method_of(name)
    assert any(isinstance(module, MomentumEncoder) for module in method.modules())
    for _ in range(3):
        views = torch.rand(method.views, 4, 1, 16, 16).unbind()
        with torch.no_grad():
            z = [*method.embed(*views), *method.targets(*views)]
            method.after_step(*z)
    assert len(made) == 1


def test_they_are_all_of_them():
    for name in METHODS:
        follows = any(isinstance(module, MomentumEncoder) for module in method_of(name).modules())
        assert follows == (name in FOLLOWED), name
