"""Nor do the Triton launchers wait: all they do in Python, with the kernels themselves left out."""

from __future__ import annotations

import contextlib
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastssl import backends, ops
from fastssl.nn import EMA
from fastssl.ops import kept
from fastssl.optim import LARS, set_lr
from tests.syncs.pretend import HostWaits, PretendCuda, on_device
from tests.syncs.test_functions import LOSSES, NUMBERS_ONLY, D, K, call_ops, rows

jit = pytest.importorskip("triton.runtime.jit")
pytestmark = pytest.mark.skipif(backends.interpreting(), reason="the interpreter's kernels")

H100 = SimpleNamespace(
    shared_memory_per_block_optin=227 * 1024, multi_processor_count=132, major=9, minor=0
)


class Pinned(Tensor):
    pass


@pytest.fixture
def launched(monkeypatch):
    """The names of kernels that the launchers would have launched on the pretended device."""
    names: list[str] = []

    def without_kernel(self, grid):
        assert all(type(size) is int and size > 0 for size in grid)

        def launch(*args, **meta):
            for x in (*args, *meta.values()):
                assert not isinstance(x, Tensor) or on_device(x), f"{self.fn.__name__} takes {x}"
            names.append(self.fn.__name__)

        return launch

    def launcher(name, backend):
        if backend != "triton":
            return getattr(torch.ops.fastssl, name)
        module = import_module(f"fastssl_kernels.{name.rsplit('_', 1)[0]}")
        return getattr(module, f"launch_{name}")

    stream = SimpleNamespace(cuda_stream=0)
    fakes = {
        "get_device_properties": lambda index: H100,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda device=None: stream,
        "device_of": lambda x: contextlib.nullcontext(),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Tensor, "record_stream", lambda x, stream: None)
    monkeypatch.setattr(jit.KernelInterface, "__getitem__", without_kernel)
    monkeypatch.setattr(backends, "raw", launcher)
    monkeypatch.setattr(kept, "watched", lambda: False)  # by the pretended device itself
    monkeypatch.setattr(kept, "has_native", lambda name: False)  # for which nothing lies anywhere
    with PretendCuda() as device:
        device.launched = names
        yield device


@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name, learned, launched):
    if learned and name in NUMBERS_ONLY:
        pytest.skip("its temperature is a number")
    a, b = rows(), rows()
    t = torch.full((), 0.5, device="cuda", requires_grad=True) if learned else 0.5
    with launched.no_waiting():
        LOSSES[name](a, b, t).sum().backward()
    assert a.grad is not None
    plain = {"own keys", "koleo", "byol", "simsiam", "cosine", "vicreg", "cluster", "distillation"}
    assert launched.launched or name in plain or "barlow" in name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ops(dtype, launched):
    call_ops(launched, dtype)
    assert len({name.split("_kernel")[0] for name in launched.launched}) > 8


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("cuda")


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_averages(narrow, launched):
    model = network()
    ema = EMA(model.bfloat16() if narrow else model, 0.9, schedule=10).to("cuda")
    ema.update(model)  # which sends the table
    m = torch.full((), 0.5, device="cuda")
    launched.launched.clear()
    with launched.no_waiting():
        for step in range(3):
            ema.update(model)
            ema.follow(model, m)
            assert len(launched.launched) == (step + 1) * (4 if narrow else 2)
        for t in (model[0].weight, ema.module[0].weight):
            t.data = torch.ones_like(t)
        with pytest.raises(HostWaits):  # the table of new addresses
            ema.update(model)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
def test_optimiser(capturable, averaged, launched):
    model, target = network(), network()
    optimizer = LARS(model.parameters(), 0.1, weight_decay=1e-4, capturable=capturable)
    averages = dict(zip(model.parameters(), target.parameters(), strict=True))

    def step(i: int) -> None:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
            held.append(p.grad)
        set_lr(optimizer, 0.1 * i)
        optimizer.step(averages=averages if averaged else None, ema_momentum=0.9)

    held: list[Tensor] = []  # so that gradients lie elsewhere each time
    step(0)  # which sends the pieces
    launched.launched.clear()
    with launched.no_waiting():
        for i in range(3):
            step(i)
    assert len(launched.launched) == 3 * 3
    assert optimizer._plan is not None


WAITS = {
    "item": lambda x: x.sum().item(),
    "grid": lambda x: int(x.sum()),
    "table": lambda x: torch.tensor([x.data_ptr()], device=x.device),
    "sent": lambda x: torch.tensor([x.data_ptr()]).to(x.device),
    "branch": lambda x: bool((x > 0).any()),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_launcher_that_waits_is_found(name, launched, monkeypatch):
    launchers = import_module("fastssl_kernels.sinkhorn")
    plain = launchers.launch_sinkhorn_fwd

    def waits(scores, *args):
        WAITS[name](scores)
        return plain(scores, *args)

    scores = rows(K, D).detach()
    with launched.no_waiting():
        ops.sinkhorn(scores, 0.05, 3)
    monkeypatch.setattr(launchers, "launch_sinkhorn_fwd", waits)
    with launched.no_waiting(), pytest.raises(HostWaits):
        ops.sinkhorn(scores, 0.05, 3)


def test_a_kernel_takes_nothing_of_the_host(launched, monkeypatch):
    chip = import_module("fastssl_kernels.sinkhorn")
    plain = chip._launch

    def more(kernel, grid, *args, **meta):
        plain(kernel, grid, torch.ones(1), *args, **meta)

    monkeypatch.setattr(chip, "_launch", more)
    with pytest.raises(AssertionError, match="takes tensor"):
        ops.sinkhorn(rows(K, D).detach(), 0.05, 3)
