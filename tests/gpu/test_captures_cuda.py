"""Every op, loss and recipe of views as a CUDA graph: captured once, replayed on other numbers
copied into the same inputs, and held to what a call of its own gives.

The ops run as they are in the rehearsal; graphs want a CUDA device. Steps of training are
test_steps_cuda's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastssl import backends
from fastssl.augment import moco_v2, simclr
from tests.syncs import test_functions as functions
from tests.syncs.catalogue import OPS, inputs
from tests.syncs.test_functions import LOSSES, NUMBERS_ONLY, D, N


@pytest.fixture
def served(device):
    """By CUDA C++ what Triton has no kernel of."""

    def by(op: str):
        if backends.why_not("triton", op, device) is None:
            return backends.use_backend("triton")
        if device == "cpu":  # the rehearsal: whatever there is
            return backends.use_backend(None)
        reason = backends.why_not("native", op, device)
        if reason:
            pytest.fail(reason)
        return backends.use_backend("native")

    return by


def replayed(work: Callable[..., tuple[Tensor, ...]], fresh: Callable[[int], list[Tensor]]) -> None:
    """``work`` of inputs ``fresh(seed)`` as a graph, beside ``work`` itself."""
    held = fresh(0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work(*held)
    for seed in (1, 2):
        with torch.no_grad():
            for mine, x in zip(held, fresh(seed), strict=True):
                mine.copy_(x)
        graph.replay()
        for got, want in zip(results, work(*fresh(seed)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_op_runs(name, device, served):
    """What the memory checker looks at: beside the reference, as loosely as all dtypes agree."""
    with served(name):
        mine = OPS[name].call(*inputs(name, 0, device))
    with backends.use_backend("reference"):
        right = OPS[name].call(*inputs(name, 0, device))
    for got, want in zip(mine, right, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3, check_dtype=False)


@pytest.mark.parametrize("name", OPS)
def test_op_in_a_graph(name, cuda, served):
    with served(name):
        replayed(OPS[name].call, lambda seed: inputs(name, seed, cuda))


@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_in_a_graph(name, learned, cuda, monkeypatch):
    if learned and name in NUMBERS_ONLY:
        pytest.skip("its temperature is a number")
    kept: dict = {}  # queues and prototypes: the same for every call

    def rows(*shape, dtype=torch.float32):
        if shape not in kept:
            kept[shape] = torch.randn(shape, device=cuda, dtype=dtype).requires_grad_()
        return kept[shape]

    monkeypatch.setattr(functions, "rows", rows)

    def fresh(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(N, D, generator=generator) for _ in range(2)]
        if learned:
            made.append(0.4 + 0.2 * torch.rand((), generator=generator))
        return [x.to(cuda).requires_grad_() for x in made]

    def work(*given: Tensor) -> tuple[Tensor, ...]:
        a, b, t = given if learned else (*given, 0.5)
        value = LOSSES[name](a, b, t).sum()
        gradients = torch.autograd.grad(value, given, allow_unused=True)
        return value.detach(), *(d for d in gradients if d is not None)

    replayed(work, fresh)


@pytest.mark.parametrize("recipe", [simclr(16), moco_v2(16)], ids=["simclr", "moco-v2"])
def test_a_recipe_in_a_graph(recipe, cuda, served):
    """Parameters are drawn in it of the samples' numbers, and the views made."""

    def fresh(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (N, 3, 24, 20), generator=generator, dtype=torch.uint8)
        return [pixels.to(cuda), torch.randint(0, 1 << 40, (N,), generator=generator).to(cuda)]

    with served("augment"):
        replayed(lambda pixels, numbers: tuple(recipe(pixels, numbers, 1)), fresh)
