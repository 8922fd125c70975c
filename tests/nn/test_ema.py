"""EMA: against the formula, whatever wraps, ties, replaces or reloads the model."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastssl.nn import EMA


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def train(model):
    """Other weights, other statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter))
    model(torch.rand(8, 1, 4, 4))


def check(ema, before, model, m):
    after, there = ema.module.state_dict(), model.state_dict()
    for name, new in after.items():
        if new.is_floating_point():
            expected = m * before[name].double() + (1 - m) * there[name].double()
            torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7, msg=name)
        else:
            assert torch.equal(new, there[name]), name


def held(ema):
    return copy.deepcopy(ema.module.state_dict())


def test_every_tensor_follows_by_the_formula():
    model = network()
    ema = EMA(model, 0.9)
    assert not any(p.requires_grad for p in ema.parameters())
    assert not ema.module.training
    for _ in range(3):
        train(model)
        before = held(ema)
        ema.update(model)
        check(ema, before, model, 0.9)
    assert ema.step == 3
    before = held(ema)
    ema.update(model, torch.tensor(0.25))
    check(ema, before, model, 0.25)
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    assert torch.equal(ema(x), ema.module(x))
    assert not ema(x).requires_grad


def test_replaced_moved_and_reloaded_parameters_are_noticed():
    model = network()
    ema = EMA(model, 0.5)
    changes = [
        lambda: setattr(model[3], "weight", nn.Parameter(torch.randn(3, 16))),
        lambda: setattr(model[0].weight, "data", torch.randn(4, 1, 3, 3)),
        lambda: model.__setitem__(3, nn.Linear(16, 3)),
        lambda: model.load_state_dict(network().state_dict(), assign=True),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.double(),
        lambda: ema.load_state_dict(copy.deepcopy(ema.state_dict()), assign=True),
    ]
    for change in changes:
        change()
        model.float()(torch.rand(8, 1, 4, 4))
        before = held(ema)
        ema.update(model)
        check(ema, before, model, 0.5)


def test_tied_parameters_are_updated_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    ema = EMA(model, 0.75)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(4)
    ema.update(model)
    assert ema.module[0].weight is ema.module[1].weight
    torch.testing.assert_close(ema.module[0].weight, start + 1)
    model[1].weight = nn.Parameter(torch.randn(4, 4))
    with pytest.raises(ValueError, match=r"1.weight is not in both"):
        ema.update(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_weights_have_float32_averages(dtype):
    model = nn.Linear(8, 8).to(dtype)
    ema, frozen = EMA(model, 0.9995), EMA(model, 0.9995, master=False)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.mul_(1.5)
    for _ in range(200):
        ema.update(model)
        frozen.update(model)
    assert torch.equal(frozen.module.weight, start) == (dtype == torch.bfloat16)
    truth = torch.lerp(model.weight.detach().double(), start.double(), 0.9995**200)
    torch.testing.assert_close(ema.masters[0].double(), truth, rtol=1e-5, atol=1e-8)
    assert ema.module.weight.dtype == dtype
    assert torch.equal(ema.module.weight, ema.masters[0].to(dtype))
    ema.to(torch.bfloat16)  # a change of dtype leaves them alone
    torch.testing.assert_close(ema.masters[0].double(), truth, rtol=1e-5, atol=1e-8)
    narrowed = EMA(nn.Linear(2, 2)).bfloat16()
    with pytest.raises(TypeError, match=r"weight became torch.bfloat16 after its copy was made"):
        narrowed.update(nn.Linear(2, 2).bfloat16())


def test_schedules():
    model = nn.Linear(2, 1)
    ema = EMA(model, 0.99, schedule=4)
    seen = []
    for _ in range(6):
        seen.append(ema.momentum)
        ema.update(model)
    assert seen == pytest.approx([0.99, 0.99146447, 0.995, 0.99853553, 1, 1])
    ema = EMA(model, schedule=lambda step: min(0.9, (1 + step) / (10 + step)))
    assert ema.momentum == 0.1
    ema.update(model)
    assert ema.momentum == 2 / 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resumes_exactly(dtype):
    def steps(ema, model, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=generator).to(p.dtype))
            ema.update(model)

    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(dtype)
    ema = EMA(model, 0.9, schedule=8)
    steps(ema, model, 3, 0)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    resumed, other = EMA(copy.deepcopy(model), 0.9, schedule=8), copy.deepcopy(model)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(ema, model, 4, 1)
    steps(resumed, other, 4, 1)
    assert resumed.step == ema.step == 7
    for name, tensor in ema.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor) if "_extra" not in name else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_evaluating_the_model_with_the_averages(dtype):
    model = network().to(dtype)
    ema = EMA(model, 0.5)
    train(model.float()) if dtype == torch.float32 else model[3].weight.data.add_(1)
    ema.update(model)
    own = copy.deepcopy(model.state_dict())
    with contextlib.suppress(KeyError), ema.swapped_in(model) as averaged:
        assert averaged is model
        torch.testing.assert_close(model.state_dict(), ema.module.state_dict(), rtol=0, atol=0)
        raise KeyError
    torch.testing.assert_close(model.state_dict(), own, rtol=0, atol=0)
    ema.copy_to(model)
    torch.testing.assert_close(model.state_dict(), ema.module.state_dict(), rtol=0, atol=0)


def test_compiled_models():
    model = network()
    whole = torch.compile(model, backend="eager")
    inside = nn.Sequential(torch.compile(model[:3], backend="eager"), model[3])
    for wrapped, plain in ((whole, model), (inside, nn.Sequential(model[:3], model[3]))):
        for copied in (wrapped, plain):
            ema = EMA(copied, 0.5)
            before = [t.clone() for t in ema.pairs(plain)[0]]
            train(model)
            ema.update(wrapped)
            averages, tensors = ema.pairs(plain)
            assert len(averages) == 9
            for new, old, there in zip(averages, before, tensors, strict=True):
                torch.testing.assert_close(new, (old + there) / 2 if new.dim() else there)


def test_within_a_compiled_step():
    model = network()
    ema, m = EMA(model), torch.zeros((), dtype=torch.float64)
    compiled = torch.compile(lambda m: ema.follow(model, m), fullgraph=True, backend="aot_eager")
    for step in range(12):  # more than a recompilation each would be allowed
        train(model)
        before = held(ema)
        compiled(m.fill_(step / 12))
        check(ema, before, model, step / 12)


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_distributed_data_parallel():
    model = network()
    parallel = torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")
    ema = EMA(parallel, 0.5)
    assert type(ema.module) is nn.Sequential
    train(model)
    before = held(ema)
    ema.update(parallel)
    check(ema, before, model, 0.5)
    ema.update(model)


@pytest.mark.usefixtures("one_rank")
def test_sharded_models():
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    ema = EMA(model, 0.5)
    start = held(ema)
    mesh = dist.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    with pytest.raises(ValueError, match=r"0.weight is \[4, 6\] \(Shard\(dim=0\),\), not \[4, 6\]"):
        ema.update(model)
    fully_shard(ema.module, mesh=mesh)
    with torch.no_grad():
        for parameter in model.parameters():
            assert isinstance(parameter, DTensor)
            parameter.add_(2)
    ema.update(model)
    for name, tensor in ema.module.state_dict().items():
        torch.testing.assert_close(tensor.full_tensor(), start[name] + 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(momentum=1.1), r"momentum must lie in \[0, 1\], not 1.1"),
        (dict(schedule=0), "schedule must be a function or at least 1 step, not 0"),
    ],
)
def test_errors(arguments, says):
    with pytest.raises(ValueError, match=says):
        EMA(nn.Linear(2, 2), **arguments)
