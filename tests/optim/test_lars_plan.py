"""LARS plans a step once: whatever changes between two of them is seen."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

import fastssl
from fastssl.ops import kept
from fastssl.optim import LARS, lars


@pytest.fixture(params=["native", "python"], autouse=True)
def library(request, monkeypatch):
    """With what the native library compares, and without."""
    if request.param == "python":
        monkeypatch.setattr(kept, "has_native", lambda name: False)
    else:
        assert kept.has_native("layout")


@pytest.fixture
def plans(monkeypatch):
    made = []
    plain = lars._Plan.__init__

    def counted(self, *args):
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(lars._Plan, "__init__", counted)
    return made


class Run:
    """A model, its optimiser and a module of averages."""

    def __init__(self):
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(5, 4))
        self.target = copy.deepcopy(self.model)
        self.optimizer = LARS(self.model.parameters(), 0.5, weight_decay=0.1)
        self.follow = True
        self.skip = ()
        self.count = 0

    def step(self):
        generator = torch.Generator().manual_seed(self.count)
        self.count += 1
        for i, w in enumerate(self.model.parameters()):
            w.grad = None
            if i not in self.skip:
                w.grad = torch.randn(w.shape, generator=generator).to(w)
        pairs = zip(self.model.parameters(), self.target.parameters(), strict=True)
        self.optimizer.step(averages=dict(pairs) if self.follow else None, ema_momentum=0.75)

    def tensors(self):
        held = [*self.model.parameters(), *self.target.parameters()]
        return held + [s["velocity"] for s in self.optimizer.state.values()]


def set_data(w, data):
    w.data = data


def new_velocity(run):
    state = run.optimizer.state[run.model[0].weight]
    state["velocity"] = torch.randn(state["velocity"].shape)


def reload(run):
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def reload_other(run):
    state = copy.deepcopy(run.optimizer.state_dict())
    state["param_groups"][0] |= {"lr": 0.1, "order": "torch", "weight_decay": 0.0}
    run.optimizer.load_state_dict(state)


def replace(run):
    run.model[2].weight = nn.Parameter(run.model[2].weight.detach() * 2)
    run.optimizer.param_groups[0]["params"][4] = run.model[2].weight


def add(run):
    more = nn.Linear(5, 2)
    run.model.append(more)
    run.target.append(copy.deepcopy(more))
    run.optimizer.add_param_group({"params": list(more.parameters()), "lr": 0.25})


def last(module):
    return module[2].weight


CHANGES = {  # and whether there must be another plan
    "nothing": (lambda run: None, False),
    "rate": (lambda run: run.optimizer.param_groups[0].update(lr=0.1), False),
    "order": (lambda run: run.optimizer.param_groups[0].update(order="popular"), False),
    "decay": (lambda run: run.optimizer.param_groups[0].update(weight_decay=0.3), False),
    "adapt": (lambda run: run.optimizer.param_groups[0].update(adapt=True), True),
    "weights loaded": (lambda run: run.model.load_state_dict(run.target.state_dict()), False),
    "new data": (lambda run: set_data(last(run.model), torch.randn(4, 5)), True),
    "new average": (lambda run: set_data(last(run.target), torch.randn(4, 5)), True),
    "layout": (lambda run: run.model.to(memory_format=torch.channels_last), True),
    "gaps": (lambda run: set_data(last(run.model), torch.randn(4, 10)[:, ::2]), True),
    "shape": (
        lambda run: (
            [set_data(last(m), last(m).data.view(5, 4)) for m in (run.model, run.target)]
            and run.optimizer.state[last(run.model)].update(velocity=torch.zeros(5, 4))
        ),
        True,
    ),
    "narrow": (lambda run: set_data(last(run.model), last(run.model).data.bfloat16()), True),
    "velocity": (new_velocity, True),
    "reloaded": (reload, True),
    "reloaded other": (reload_other, True),
    "replaced": (replace, True),
    "group": (add, True),
    "no gradient": (lambda run: setattr(run, "skip", (2,)), True),
    "no averages": (lambda run: setattr(run, "follow", False), True),
    "another target": (lambda run: setattr(run, "target", copy.deepcopy(run.target)), True),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, backend, plans):
    change, anew = CHANGES[name]
    planned, plain = Run(), Run()
    with fastssl.use_backend(backend):
        for i in range(6):
            if i == 3:
                for run in (planned, plain):
                    torch.manual_seed(2)
                    change(run)
            planned.step()
            made = len(plans)
            plain.optimizer._plan = None
            plain.step()
            del plans[made:]
            for mine, right in zip(planned.tensors(), plain.tensors(), strict=True):
                assert torch.equal(mine, right)
    assert len(plans) == 1 + anew


def test_gradients_are_not_held(plans):
    run = Run()
    for _ in range(3):
        run.step()
        gradient = weakref.ref(run.model[0].weight.grad)
        run.optimizer.zero_grad(set_to_none=True)
        assert gradient() is None
    assert len(plans) == 1


def test_a_gradient_may_come_otherwise(plans):
    """Strided, of another dtype; sparse is refused."""
    planned, plain = Run(), Run()
    odd = [lambda g: g, lambda g: g.mT.contiguous().mT, lambda g: g.double(), lambda g: g]
    for make in odd:
        for run in (planned, plain):
            for w in run.model.parameters():
                w.grad = None
            last(run.model).grad_dtype = None
            last(run.model).grad = make(torch.ones(4, 5))
        planned.optimizer.step()
        plain.optimizer._plan = None
        plain.optimizer.step()
        assert torch.equal(last(planned.model), last(plain.model))
    last(planned.model).grad = torch.ones(4, 5).to_sparse()
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match="sparse"):
            planned.optimizer.step()


def test_bad_tensors_and_settings_are_refused():
    run = Run()
    for _ in range(2):
        run.step()
    run.optimizer.param_groups[0]["order"] = "fast"
    with pytest.raises(ValueError, match="order must be one of"):
        run.step()
    run.optimizer.param_groups[0]["order"] = "torch"
    run.step()
    last(run.target).data = torch.ones(4, 6)
    with pytest.raises(ValueError, match=r"averages\[1\] must have the shape of params\[1\]"):
        run.step()


def test_another_backend():
    planned, plain = Run(), Run()
    for backend in ("native", "reference", "native"):
        for run in (planned, plain):
            with fastssl.use_backend(backend):
                run.step()
        plain.optimizer._plan = None
    for mine, right in zip(planned.tensors(), plain.tensors(), strict=True):
        assert torch.equal(mine, right)
