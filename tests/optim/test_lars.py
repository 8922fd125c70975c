"""LARS against its formula in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.optim import LARS, build_optimizer

LR, MOMENTUM, DECAY = 0.5, 0.8, 0.1


def by_hand(weights, gradients, decay):
    """The steps of one parameter, from [steps, ...] gradients."""
    w, v = weights.double(), 0.0
    for gradient in gradients.double():
        d = gradient + decay * w
        size, change = w.norm(), d.norm()
        if w.dim() > 1 and size > 0 and change > 0:
            d = d * (1e-3 * size / change)
        v = MOMENTUM * v + d
        w = w - LR * v
    return w


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_steps_are_those_of_the_formula(decay):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5))
    nn.init.zeros_(module[2].weight)
    start = [p.detach().clone() for p in module.parameters()]
    gradients = [torch.randn(4, *p.shape) for p in module.parameters()]
    gradients[0][2] = 0  # and without decay, no change at all
    optimizer = build_optimizer("lars", module, lr=LR, momentum=MOMENTUM, weight_decay=decay)
    assert type(optimizer) is LARS
    for step in range(4):
        for p, gradient in zip(module.parameters(), gradients, strict=True):
            p.grad = gradient[step].clone()
        optimizer.step()
    for p, first, gradient in zip(module.parameters(), start, gradients, strict=True):
        expected = by_hand(first, gradient, decay if p.dim() > 1 else 0)
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_its_state():
    module = nn.Linear(3, 2)
    optimizer = LARS(module.parameters(), LR)
    other = copy.deepcopy(module)
    again = LARS(other.parameters(), LR)
    for step in range(4):
        if step == 2:
            other.load_state_dict(copy.deepcopy(module.state_dict()))
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        x = torch.randn(5, 3)
        for m, o in ((module, optimizer), (other, again)):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    assert torch.equal(module.weight, other.weight)


def test_a_closure_and_a_parameter_without_gradient():
    used, spare = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([used, spare], LR)

    def closure():
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert torch.equal(spare.detach(), torch.ones(2))
    assert not torch.equal(used.detach(), torch.ones(2, 2))
