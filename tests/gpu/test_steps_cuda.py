"""Whole steps on a CUDA device: none waits for it, and they go on when replayed as a graph.

The same losses and steps as where CUDA is pretended (tests/syncs), rehearsed by the interpreter.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

from fastssl.training import CapturedStep
from tests.syncs.test_functions import LOSSES, NUMBERS_ONLY, D, N
from tests.syncs.test_replay import STEPS, MoCoStep, SimCLRStep, states


@contextmanager
def no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_does_not_wait(name, learned, cuda):
    if learned and name in NUMBERS_ONLY:
        pytest.skip("its temperature is a number")
    t = torch.full((), 0.5, device=cuda, requires_grad=True) if learned else 0.5
    a, b = (torch.randn(N, D, device=cuda).requires_grad_() for _ in range(2))
    LOSSES[name](a, b, t).sum().backward()  # compiles
    with no_waiting():
        LOSSES[name](a, b, t).sum().backward()


@pytest.mark.parametrize("kind", [SimCLRStep, MoCoStep])
def test_a_step_waits_for_nothing(kind, cuda):
    step = kind().to(cuda)
    views = torch.randn(2, N, 1, 8, 8, device=cuda).unbind()
    for _ in range(2):
        step(*views)  # compiles
    with no_waiting():
        step.schedule(1)
        step(*views)


@pytest.mark.parametrize("kind", [SimCLRStep, MoCoStep])
def test_a_captured_step_goes_on(kind, device):
    """Beside one that runs; convolutions may choose other sums, so not to the bit."""
    plain = kind()
    step = copy.deepcopy(plain).to(device)
    plain.to(device)
    captured = CapturedStep(step, warm_up=2)
    for t in range(STEPS if device == "cuda" else 1):
        views = torch.randn(2, N, 1, 8, 8, device=device).unbind()
        for one in (plain, step):
            one.schedule(t)
        torch.testing.assert_close(captured(*views), plain(*views), rtol=1e-3, atol=1e-4)
    for mine, right in zip(states(step), states(plain), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-2, atol=1e-3)
