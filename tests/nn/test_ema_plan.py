"""A follower's steps are planned once; whatever changes between two of them is seen."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastssl
from fastssl.nn import EMA, MomentumEncoder, ema, walk
from fastssl.ops import ema_update, kept
from tests.nn.test_ema import check, held


@pytest.fixture(params=["native", "python"], autouse=True)
def library(request, monkeypatch):
    """With what the native library compares, and without."""
    if request.param == "python":
        monkeypatch.setattr(kept, "has_native", lambda name: False)
        monkeypatch.setattr(ema_update, "has_native", lambda name: False)
        monkeypatch.setattr(ema, "tensors_in", walk.tensors_in_python)
        monkeypatch.setattr(ema, "holds", walk.holds_python)
    else:
        assert ema.holds is not walk.holds_python
        assert kept.has_native("keep")
        assert kept.has_native("ema_update_again")


@pytest.fixture
def plans(monkeypatch):
    made = []
    plain = ema._Plan.__init__

    def counted(self, *args):
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(ema._Plan, "__init__", counted)
    return made


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 3)))


def train(model):
    with torch.no_grad():
        for t in ema.tensors_of(model).values():
            t.copy_(torch.randn(t.shape).abs() * 9 + 1)


def steps(follower, model, m=0.75, count=2):
    for _ in range(count):
        train(model)
        before = held(follower)
        follower.follow(model, m)
        check(follower, before, model, m)


def test_a_plan_serves_every_step(plans):
    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model, count=4)
    steps(follower, model, torch.tensor(0.5, dtype=torch.float64))
    before = held(follower)
    follower.follow(nn.parallel.DataParallel(model), 0.5)
    check(follower, before, model, 0.5)
    for _ in range(2):  # another container of the same, as methods make one
        before = held(follower)
        follower.follow(nn.Sequential(*model), 0.5)
        check(follower, before, model, 0.5)
    model[0].weight.requires_grad_(False)  # frozen: it still follows
    model.eval()
    model.load_state_dict(network().state_dict())  # copied in place
    steps(follower, model)
    assert len(plans) == 1
    other = network()
    steps(follower, other)
    assert len(plans) == 2


def same_address(model):
    """A weight that is read in another order from the same memory."""
    weight = model[0].weight
    weight.data = weight.data.t()


def both(change):
    """The same of the model and its copy."""
    return lambda model, own: [change(m) for m in (model, own)]


CHANGES = {
    "replaced": lambda model, own: setattr(model[0], "weight", nn.Parameter(torch.randn(4, 4))),
    "new data": lambda model, own: setattr(model[0].weight, "data", torch.randn(4, 4)),
    "new order": lambda model, own: same_address(model),
    "own new order": lambda model, own: same_address(own),
    "own new data": lambda model, own: setattr(own[0].weight, "data", torch.randn(4, 4)),
    "own replaced": lambda model, own: setattr(own[2][0], "bias", nn.Parameter(torch.randn(3))),
    "module": lambda model, own: model.__setitem__(2, nn.Sequential(nn.Linear(4, 3))),
    "nested": lambda model, own: model[2].__setitem__(0, nn.Linear(4, 3)),
    "buffer": lambda model, own: setattr(model[1], "running_mean", torch.randn(4)),
    "assigned": lambda model, own: model.load_state_dict(network().state_dict(), assign=True),
    "dtype": lambda model, own: model.double(),
    "own dtype": lambda model, own: own.double(),
    "gaps": lambda model, own: setattr(model[0].weight, "data", torch.randn(4, 8)[:, ::2]),
    "table": lambda model, own: model[0].__dict__.update(_parameters=nn.Linear(4, 4)._parameters),
    "storage": lambda model, own: model[0].weight.data.resize_(4, 64),
    "own storage": lambda model, own: own[0].weight.data.resize_(4, 64),
    "resized": both(lambda m: m[1].running_mean.resize_(2)),
    "more": both(lambda m: m[0].register_buffer("more", torch.ones(2))),
    "less": both(lambda m: setattr(m[1], "num_batches_tracked", None)),
    "tied": both(lambda m: setattr(m[2][0], "bias", m[2][0].weight)),
    "retyped": both(lambda m: setattr(m[1].running_mean, "data", torch.ones(4).double())),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, plans):
    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model)
    CHANGES[name](model, follower.module)
    steps(follower, model)
    assert len(plans) == 2


def test_another_dtype_at_the_same_address():
    """As after a conversion there and back, when memory comes again."""
    model = nn.Module()
    model.register_buffer("x", torch.zeros(8, dtype=torch.float32))
    follower = EMA(model, 0.0)
    follower.update(model)
    bits = torch.arange(8, dtype=torch.int32)
    model.x.copy_(bits.view(torch.float32))
    model.x.data = model.x.data.view(torch.int32)
    follower.module.x.data = follower.module.x.data.view(torch.int32)
    follower.update(model, 0.9)
    assert torch.equal(follower.module.x, bits)  # an integer is copied


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m[0].bias, "data", torch.ones(5)), r"0.bias is \[5\], not \[4\]"),
        (lambda m: setattr(m[2][0], "weight", nn.Parameter(torch.ones(3, 5))), "2.0.weight is"),
        (
            lambda m: m[0].register_parameter("more", nn.Parameter(torch.ones(1))),
            "0.more is not in",
        ),
        (lambda m: m.add_module("more", nn.Linear(1, 1)), "more.bias is not in both"),
        (lambda m: m.__delitem__(2), "2.0.bias is not in both"),
        (lambda m: setattr(m[1], "weight", m[0].bias), "1.weight is not in both"),
    ],
)
def test_another_module_is_refused_and_nothing_done(change, says):
    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model)
    change(model)
    before = held(follower)
    for _ in range(2):
        with pytest.raises(ValueError, match=says):
            follower.follow(model, 0.5)
    with pytest.raises(ValueError, match="momentum"):
        follower.follow(network(), 2.0)
    assert all(map(torch.equal, held(follower).values(), before.values()))


def test_tied_weights_are_updated_once_and_may_part():
    model = network()
    model[2][0].bias = model[1].bias = nn.Parameter(torch.ones(3))
    model[1].weight = nn.Parameter(torch.ones(3))
    follower = MomentumEncoder(model)
    steps(follower, model)
    for m in (model, follower.module):
        m[1].bias = nn.Parameter(torch.ones(3))
    steps(follower, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masters_go_on(dtype, plans):
    model = nn.Linear(4, 4).to(dtype)
    follower = MomentumEncoder(model)
    expected = [m.double() for m in follower.masters]
    for step in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape).to(dtype))
        if step == 2:
            follower.masters[0].data = follower.masters[0].data.clone()
        if step == 4:
            follower.module.weight.data = torch.zeros(4, 4, dtype=dtype)
        follower.follow(model, 0.9)
        for i, (average, weight) in enumerate(
            zip(follower.module.parameters(), model.parameters(), strict=True)
        ):
            expected[i] = torch.lerp(weight.detach().double(), expected[i], 0.9)
            torch.testing.assert_close(
                follower.masters[i].double(), expected[i], rtol=1e-6, atol=1e-6
            )
            assert torch.equal(average, follower.masters[i].to(dtype))
    assert len(plans) == 3


def test_a_copy_has_its_own():
    model = network()
    follower = EMA(model, 0.5)
    steps(follower, model)
    for copied in (
        copy.deepcopy(follower),
        pickle.loads(pickle.dumps(follower)),
        copy.copy(follower),
    ):
        assert copied._plan is None
        if copied.module is not follower.module:
            kept_as = held(follower)
            steps(copied, model)
            assert all(map(torch.equal, held(follower).values(), kept_as.values()))
    steps(follower, model)


def test_a_model_that_is_dropped_is_not_held():
    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model)
    weight, module = weakref.ref(model[0].weight), weakref.ref(model[0])
    del model
    assert module() is None
    assert weight() is None
    model = network()
    steps(follower, model)


def test_who_watches_sees_the_op():
    names = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model)
    with Seen():
        follower.follow(model, 0.5)
    assert "fastssl.ema_update_fwd.default" in names


def test_autograd_sees_the_writing(plans):
    model = network()
    follower = MomentumEncoder(model)
    steps(follower, model)
    x = torch.ones(2, 4, requires_grad=True)
    y = follower.module[0](x).sum()
    follower.follow(model, 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert len(plans) == 1


def test_another_backend(plans):
    model = network()
    follower = MomentumEncoder(model)
    for backend in ("native", "reference", "native"):
        with fastssl.use_backend(backend):
            steps(follower, model)
    assert len(plans) == 3
