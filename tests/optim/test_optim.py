"""Optimisers by name and learning rates for large batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.nn import SmallCNN
from fastssl.optim import build_optimizer, parameter_groups, scaled_lr, set_lr, warmup_cosine
from fastssl.training.config import config_from


def test_biases_and_norms_are_not_decayed():
    module = nn.Sequential(SmallCNN(1), nn.Linear(128, 3))
    module[1].weight.requires_grad_(False)
    decayed, spared = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in spared["params"])
    assert len(decayed["params"]) == 4
    assert len(spared["params"]) == 8 + 1


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_by_name(name, kind):
    module = nn.Linear(3, 1)
    optimizer = build_optimizer(name, module, lr=0.1, momentum=0.8, weight_decay=0.01)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["momentum"] if name == "sgd" else group["betas"][0]) == 0.8
    before = module.weight.clone()
    module(torch.rand(2, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, module.weight)


def test_an_unknown_name():
    with pytest.raises(
        UserError, match="no optimizer 'adam'; there are: sgd, adamw, lars, lars-torch"
    ):
        build_optimizer("adam", nn.Linear(1, 1), lr=1)
    with pytest.raises(UserError, match="no scaling rule 'cubic'; there are: none, linear, sqrt"):
        scaled_lr(1, 1, "cubic")


def test_simclrs_rules():
    assert scaled_lr(0.3, 4096, "linear") == pytest.approx(4.8)
    assert scaled_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
    assert scaled_lr(0.1, 4096, "none") == 0.1


@pytest.mark.parametrize(
    ("preset", "lr", "weight_decay"),
    [("paper", 4.8, 1e-6), ("imagenet", 4.8, 1e-4), ("v2", 6.4, 1e-4)],
)
def test_simclrs_presets_take_its_rules_and_its_lars(preset, lr, weight_decay):
    config = config_from({"preset": preset}, "here")
    assert (config.optimizer, config.weight_decay) == ("lars", weight_decay)
    assert scaled_lr(config.lr, config.batch_size, config.lr_scaling) == pytest.approx(lr)


def test_others_keep_the_rate_outside_of_the_velocity():
    for method, preset in (("moco-v3", "resnet50"), ("nnclr", "imagenet"), ("swav", "imagenet")):
        config = config_from({"method": method, "preset": preset}, "here")
        assert config.optimizer == "lars-torch"


def test_warm_up_and_cosine():
    rates = [warmup_cosine(step, 110, 10) for step in range(111)]
    assert rates[:11] == pytest.approx([(i + 1) / 11 for i in range(10)] + [1.0])
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0, abs=1e-12)
    assert rates[85] == pytest.approx((1 + math.cos(0.75 * math.pi)) / 2)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert warmup_cosine(0, 10) == 1
    assert warmup_cosine(500, 10) == pytest.approx(0, abs=1e-12)
    assert warmup_cosine(9, 10, 20) < 1


def test_set_lr():
    optimizer = build_optimizer("sgd", nn.Linear(2, 2), lr=1)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
