"""Beside ``fastssl bench launches``: the host's work in a call, which is all the time that small
batches take on a GPU.

Triton's launchers run on a few numbers of the CPU, all of their Python and Triton's own, but not
the driver's call that starts the kernel. Torch's ops, in the call and in its eager equivalent, run
on as few numbers; on CUDA they take some microseconds more.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from bench import harness, machine, run

PATH = run.RESULTS / "host.json"
N, D, K = 8, 16, 24
Pair = tuple[Callable[[], Any], Callable[[], Any]]


@contextmanager
def without_device() -> Iterator[list[str]]:
    """Within the block ops of CPU tensors go by Triton's launchers, up to the driver's call; gives
    the names of the kernels."""
    import fastssl_kernels
    from fastssl_kernels.similarity_lse_plan import Device
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    from fastssl import backends

    launched: list[str] = []
    target = GPUTarget("cuda", 90, 32)
    pretended = SimpleNamespace(
        get_current_device=lambda: -1,  # whose kernels nobody else looks up
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )

    h100 = Device("hopper", processors=132)

    def device_of(x: Tensor) -> Device:
        return h100

    stems = [m.name for m in pkgutil.iter_modules(fastssl_kernels.__path__)]
    modules = [importlib.import_module(f"fastssl_kernels.{stem}") for stem in stems]

    def compiled(self: Any, key: Any, signature: Any, device: int, *rest: Any) -> Any:
        kernel = SimpleNamespace(
            run=lambda *args: launched.append(self.fn.__name__),
            launch_metadata=lambda *args: None,
            function=None,
            packed_metadata=None,
        )
        self.device_caches[device][0][key] = kernel
        return kernel

    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(driver, "_active", pretended))
        enter(mock.patch.object(jit.JITFunction, "_do_compile", compiled))
        enter(mock.patch.object(backends, "_INTERPRETING", True))  # takes CPU tensors
        for module in modules:
            if hasattr(module, "_device"):
                enter(mock.patch.object(module, "_device", device_of))
        enter(backends.use_backend("triton"))
        yield launched


def calls() -> dict[str, Pair]:
    """By the names of ``bench launches``: a call, and what plain PyTorch does for the same."""
    import fastssl.functional as F
    from fastssl import ops
    from fastssl.nn import EMA, MemoryQueue, resnet
    from fastssl.optim import LARS

    def rows(n: int = N) -> Tensor:
        return torch.randn(n, D)

    a, b = rows().requires_grad_(), rows().requires_grad_()
    keys, bank, center = rows(), normalize(rows(K), dim=1), torch.zeros(D)

    def nt_xent() -> Tensor:
        z = normalize(torch.cat([a, b]), dim=1)
        logits = (z @ z.T / 0.5).fill_diagonal_(float("-inf"))
        return cross_entropy(logits, torch.arange(2 * N).roll(N))

    def info_nce() -> Tensor:
        q, k = normalize(a, dim=1), normalize(keys, dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ bank.T], 1) / 0.2
        return cross_entropy(logits, torch.zeros(N, dtype=torch.int64))

    def clip() -> Tensor:
        logits = 10.0 * normalize(a, dim=1) @ normalize(b, dim=1).T
        own = torch.arange(N)
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def siglip() -> Tensor:
        logits = 10.0 * normalize(a, dim=1) @ normalize(b, dim=1).T - 10.0
        return -logsigmoid((2 * torch.eye(N) - 1) * logits).sum() / N

    def dino() -> Tensor:
        target = ((keys - center) / 0.04).softmax(-1)
        views = [-(target * (s / 0.1).log_softmax(-1)).sum(-1).mean() for s in (a, a)]
        return sum(views[1:], views[0]) / 2

    def sinkhorn() -> Tensor:
        q = (bank / 0.05).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / D
            q = q / q.sum(0, keepdim=True) / K
        return (q * K).T

    def topk() -> Any:
        return (keys @ bank.T).topk(4)

    model = tiny(resnet.resnet50())
    ema = EMA(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999), use_buffers=True
    )
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    lars = LARS(model.parameters(), 0.0, weight_decay=1e-6)
    sgd = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, foreach=True)

    queue, rival, at = MemoryQueue(K, D), torch.zeros(D, K), 0

    def enqueue() -> None:
        nonlocal at
        rival[:, at : at + N] = keys.T
        at = (at + N) % K

    return {
        "nt_xent": (lambda: F.nt_xent(a, b, 0.5), nt_xent),
        "info_nce, queue": (lambda: F.info_nce(a, keys, bank, 0.2), info_nce),
        "clip": (lambda: F.clip_loss(a, b, 10.0), clip),
        "siglip": (lambda: F.siglip_loss(a, b, 10.0, logit_bias=-10.0), siglip),
        "dino": (lambda: F.dino_loss([a, a], [keys, keys], center), dino),
        "sinkhorn": (lambda: ops.sinkhorn(bank, 0.05, 3), sinkhorn),
        "similarity_topk": (lambda: ops.similarity_topk(keys, bank, 4), topk),
        "EMA.update": (lambda: ema.update(model), lambda: average.update_parameters(model)),
        "LARS.step": (lars.step, sgd.step),
        "MemoryQueue.enqueue": (lambda: queue.enqueue(keys), enqueue),
    }


def tiny(model: nn.Module) -> nn.Module:
    """The same tensors, but of one element each."""
    for t in (*model.parameters(), *model.buffers()):
        t.data = torch.zeros([1] * t.dim(), dtype=t.dtype)
    return model


def passes(pair: Pair) -> dict[str, Pair]:
    """Forward, and with it the backward where there is one."""
    found = {"forward": pair}
    result = pair[0]()
    if isinstance(result, Tensor) and result.requires_grad:
        ours, eager = pair
        found["forward and backward"] = lambda: ours().backward(), lambda: eager().backward()
    return found


def measure(seconds: float = 3.0) -> dict[str, dict[str, dict[str, float]]]:
    """Microseconds of this process, and the ratio to the eager equivalent in the same rounds."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    with without_device() as launched:
        for name, pair in calls().items():
            found[name] = {}
            for which, (ours, eager) in passes(pair).items():
                launched.clear()
                ours()
                count = len(launched)
                times, _ = harness.interleave(
                    {"ours": ours, "eager": eager},
                    device="cpu",
                    seconds=seconds,
                    clock=time.process_time,
                )
                found[name][which] = {
                    "us": harness.quantiles(times["ours"])["p50"] * 1e3,
                    "ratio": harness.ratio(times["ours"], times["eager"]),
                    "launches": count,
                }
    return found


HEAD = """
Microseconds of the host's processor a call, and in brackets how many times those of plain PyTorch
in the same rounds: Triton's launchers and Triton's own Python on tensors of a few numbers on a CPU,
up to the driver's call, which is left out ({cpu}, torch {torch}, Triton {triton}). EMA and LARS are
of ResNet-50's tensors, beside torch's `AveragedModel` and `SGD(foreach=True)`. Torch's ops, on both
sides, take some microseconds more on CUDA.

"""


def table(told: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| call | forward | forward and backward |", "| --- | --- | --- |"]
    for name, found in told["calls"].items():
        cells = [
            f"{p['us']:.0f} (×{p['ratio']:.2f})" if (p := found.get(which)) else ""
            for which in ("forward", "forward and backward")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return HEAD.format(**told["machine"]) + "\n".join(lines) + "\n"


def main() -> str:
    """Measure, write bench/results/host.json, and give the table."""
    torch.set_num_threads(1)
    told = {"machine": machine.describe(), "calls": measure()}
    PATH.write_text(json.dumps(told, indent=1) + "\n")
    return table(told)
