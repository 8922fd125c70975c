"""The encoder that follows: against the formula, tensor by tensor."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.nn import MomentumEncoder, cosine_momentum


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def trained_a_little(module):
    """Other weights, other statistics."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module(torch.rand(8, 1, 4, 4))
    return module


def test_it_begins_as_a_copy_that_does_not_learn():
    source = network()
    momentum = MomentumEncoder(source)
    torch.testing.assert_close(momentum.module.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert not any(p.requires_grad for p in momentum.parameters())
    assert not momentum(torch.rand(2, 1, 4, 4, requires_grad=True)).requires_grad
    trained_a_little(source)
    assert not torch.equal(momentum.module[0].weight, source[0].weight)


@pytest.mark.parametrize("m", [0.0, 0.5, 0.99, 1.0])
def test_every_tensor_follows_by_the_formula(m):
    momentum = MomentumEncoder(network())
    source = trained_a_little(network())
    before = copy.deepcopy(momentum.module.state_dict())
    momentum.follow(source, m)
    for name, new in momentum.module.state_dict().items():
        there = source.state_dict()[name]
        if new.is_floating_point():
            expected = m * before[name].double() + (1 - m) * there.double()
            torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-6, msg=name)
        else:
            assert torch.equal(new, there), name
    if m == 1:
        assert torch.equal(momentum.module[0].weight, before["0.weight"])


def test_a_thousand_small_steps_arrive():
    """m = 0.999 in float32 loses nothing that shows: 1 − 0.999¹⁰⁰⁰ of the way."""
    source, momentum = nn.Linear(3, 2), MomentumEncoder(nn.Linear(3, 2))
    start = momentum.module.weight.double()
    for _ in range(1000):
        momentum.follow(source, 0.999)
    expected = torch.lerp(source.weight.detach().double(), start, 0.999**1000)
    torch.testing.assert_close(momentum.module.weight.double(), expected, rtol=0, atol=2e-5)


def test_chunks_have_statistics_of_their_own():
    momentum = MomentumEncoder(network())
    x = torch.rand(7, 1, 4, 4)
    expected = torch.cat([copy.deepcopy(momentum)(part) for part in (x[:3], x[3:6], x[6:])])
    assert torch.equal(momentum(x, chunk_size=3), expected)
    momentum.eval()
    torch.testing.assert_close(momentum(x, chunk_size=3), momentum(x))


def test_half_precision_weights_have_float32_averages():
    source = nn.Linear(2, 2).bfloat16()
    momentum = MomentumEncoder(source)
    start = momentum.module.weight.double()
    with torch.no_grad():
        source.weight.add_(1)
    for _ in range(100):
        momentum.follow(source, 0.999)
    assert momentum.module.weight.dtype == torch.bfloat16
    expected = torch.lerp(source.weight.detach().double(), start, 0.999**100)
    torch.testing.assert_close(momentum.module.weight.double(), expected, rtol=2**-8, atol=0)


def test_wrong_arguments_are_named():
    momentum = MomentumEncoder(network())
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], not 1.5"):
        momentum.follow(network(), 1.5)
    for other, says in (
        (nn.Linear(3, 2), "0.bias is not in both"),
        (nn.Sequential(*network()[:3], nn.Linear(16, 4)), r"3.weight is \[4, 16\], not \[3, 16\]"),
    ):
        with pytest.raises(ValueError, match=f"source is not the module that was copied: {says}"):
            momentum.follow(other, 0.5)


def test_a_frozen_module_and_one_without_parameters_can_be_followed():
    MomentumEncoder(nn.Flatten()).follow(nn.Flatten(), 0.9)
    momentum = MomentumEncoder(nn.BatchNorm1d(2, affine=False))
    source = nn.BatchNorm1d(2, affine=False)
    source(torch.rand(4, 2))
    momentum.follow(source, 0.9)
    torch.testing.assert_close(momentum.module.running_mean, source.running_mean * 0.1)
    assert momentum.module.num_batches_tracked == 1


def test_cosine():
    assert cosine_momentum(0.99, 0) == pytest.approx(0.99)
    assert cosine_momentum(0.99, 0.5) == pytest.approx(0.995)
    assert cosine_momentum(0.99, 1) == 1
