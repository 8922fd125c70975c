"""A step that is replayed goes on as one that runs: its state is in tensors, none in Python."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn

from fastssl.functional import info_nce, nt_xent
from fastssl.nn import EMA, MemoryQueue, MomentumEncoder, cosine_momentum
from fastssl.optim import LARS, set_lr
from fastssl.training import CapturedStep
from tests.syncs.replay import Capture, Graph

N, STEPS = 6, 7


@pytest.fixture
def graphs(monkeypatch):
    """``torch.cuda`` as far as CapturedStep goes, on the CPU."""

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    fakes = {"CUDAGraph": Graph, "graph": Capture, "Stream": Stream, "current_stream": Stream}
    fakes |= {"stream": lambda stream: contextlib.nullcontext()}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Tensor, "is_cuda", True)


def encoder() -> nn.Sequential:
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    return nn.Sequential(*layers)


class SimCLRStep:
    """Two views, NT-Xent, LARS, an average of the weights."""

    def __init__(self) -> None:
        self.model = encoder()
        self.optimizer = LARS(self.model.parameters(), 0.3, weight_decay=1e-4, capturable=True)
        self.follower = EMA(self.model)
        self.momentum = torch.zeros(())
        self.parts = [self.model, self.follower]

    def to(self, device: str) -> SimCLRStep:
        """Before its first step."""
        for part in self.parts:
            part.to(device)
        self.momentum = self.momentum.to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].to(device)
        return self

    def schedule(self, t: int) -> None:
        set_lr(self.optimizer, 0.3 / (1 + t))
        self.momentum.fill_(cosine_momentum(0.5, t / STEPS))

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        return nt_xent(*self.model(torch.cat([x0, x1])).chunk(2), 0.5)

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x0, x1)
        loss.backward()
        self.optimizer.step()
        self.follower.follow(self.model, self.momentum)
        return loss.detach()


class MoCoStep(SimCLRStep):
    """A queue that wraps, and keys by an encoder that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = MomentumEncoder(self.model)
        self.queue = MemoryQueue(2 * N + 1, 5)
        self.parts = [self.model, self.follower, self.queue]

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.keys = self.follower(x1)
        return info_nce(self.model(x0), self.keys, self.queue.rows, 0.2)

    def __call__(self, x0: Tensor, x1: Tensor) -> Tensor:
        loss = super().__call__(x0, x1)
        self.queue.enqueue(self.keys)
        return loss


class FixedRate(SimCLRStep):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer = LARS(self.model.parameters(), 0.3)


class FixedMomentum(SimCLRStep):
    def schedule(self, t: int) -> None:
        set_lr(self.optimizer, 0.3 / (1 + t))
        self.momentum = cosine_momentum(0.5, t / STEPS)


class Counts(SimCLRStep):
    steps = 0

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.steps += 1
        return super().loss(x0, x1) * self.steps


def states(step: SimCLRStep) -> list[Tensor]:
    velocities = [s["velocity"] for s in step.optimizer.state.values()]
    return [
        t for part in step.parts for t in part.state_dict().values() if isinstance(t, Tensor)
    ] + velocities


def differs(kind: type[SimCLRStep]) -> bool:
    """Whether replayed steps ever differ from those that run, by a bit."""
    torch.manual_seed(0)
    plain = kind()
    step = copy.deepcopy(plain)
    captured = CapturedStep(step, warm_up=2)
    different = False
    for t in range(STEPS):
        views = torch.randn(2, N, 1, 8, 8).unbind()
        for one in (plain, step):
            one.schedule(t)
        different |= not torch.equal(captured(*views), plain(*views))
        different |= not all(map(torch.equal, states(step), states(plain)))
    assert captured._graph.calls
    return different


@pytest.mark.parametrize("kind", [SimCLRStep, MoCoStep])
def test_a_replayed_step_goes_on(kind, graphs):
    assert not differs(kind)


@pytest.mark.parametrize("kind", [FixedRate, FixedMomentum, Counts])
def test_numbers_of_python_are_found(kind, graphs):
    assert differs(kind)


def test_inputs_must_stay_alike(graphs):
    step = CapturedStep(lambda x: x + 1, warm_up=1)
    for _ in range(3):
        assert step(torch.ones(2)).tolist() == [2, 2]
    with pytest.raises(ValueError, match=r"float32 \[2\], not torch.float32 \[3\]"):
        step(torch.ones(3))
    with pytest.raises(ValueError, match="warm_up"):
        CapturedStep(len, warm_up=0)


def test_on_a_cpu_it_is_the_step():
    step = CapturedStep(lambda x: x * 2)
    for _ in range(5):
        assert step(torch.ones(1)).item() == 2
