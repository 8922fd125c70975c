"""``fastssl bench launches``: kernels that a call launches on CUDA, counted without one.

By Triton's interpreter: launches of our kernels, and beside them torch's ops that would launch one
(all but views and empty allocations). Small batches are bound by these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench import host, run

# What launches nothing; that nobody reads from the device is the affair of tests/syncs.
FREE = {"_local_scalar_dense", "promote_types"}
FREE |= {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view"}
PATH = run.RESULTS / "launches.json"
N, D, K = 8, 16, 24


class Count(TorchDispatchMode):
    """Within the block, launches of either kind by name."""

    def __init__(self) -> None:
        super().__init__()
        self.triton: list[str] = []
        self.torch: list[str] = []

    def __enter__(self) -> Count:
        from triton.runtime import interpreter

        self._executor = interpreter.GridExecutor
        self._plain = plain = self._executor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self.triton.append(executor.fn.__name__)
            with torch.utils._python_dispatch._disable_current_modes():  # the interpreter's own
                return plain(executor, *args, **kwargs)

        self._executor.__call__ = counted
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._executor.__call__ = self._plain
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name.split("::")
        views = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        result = function(*args, **(kwargs or {}))
        empty = isinstance(result, Tensor) and not result.numel()
        if name[0] == "aten" and name[1] not in FREE and not views and not empty:
            self.torch.append(name[1])
        return result


def calls() -> dict[str, Callable[[], Callable[[], Any]]]:
    """By name, what sets up a call."""
    import fastssl.functional as F
    from fastssl import ops
    from fastssl.nn import EMA, MemoryQueue
    from fastssl.optim import LARS

    def rows(*shape: int) -> Tensor:
        return torch.randn(*(shape or (N, D))).requires_grad_()

    def loss(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Callable[[], Any]]:
        def call() -> Tensor:
            for x in inputs:
                x.grad = None  # as at the start of a step: nothing to add to
            return function(*inputs)

        return lambda: call

    def average() -> Callable[[], Any]:
        model = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.BatchNorm1d(D))
        ema = EMA(model)
        return lambda: ema.update(model)

    def lars() -> Callable[[], Any]:
        model = torch.nn.Linear(D, D)
        model(rows()).sum().backward()
        optimizer = LARS(model.parameters(), 0.1, capturable=True)
        return lambda: optimizer.step()

    def queue() -> Callable[[], Any]:
        held = MemoryQueue(K, D)
        keys = rows().detach()
        return lambda: held.enqueue(keys)

    negatives = rows(K, D).detach()
    return {
        "nt_xent": loss(lambda a, b: F.nt_xent(a, b, 0.5), rows(), rows()),
        "info_nce, queue": loss(
            lambda q, k: F.info_nce(q, k, negatives, 0.2), rows(), rows().detach()
        ),
        "clip": loss(lambda a, b: F.clip_loss(a, b, 10.0), rows(), rows()),
        "siglip": loss(lambda a, b: F.siglip_loss(a, b, 10.0, logit_bias=-10.0), rows(), rows()),
        "dino": loss(
            lambda s, t: F.dino_loss([s, s], [t, t], torch.zeros(D)), rows(), rows().detach()
        ),
        "sinkhorn": loss(lambda s: ops.sinkhorn(s, 0.05, 3), rows(K, D).detach()),
        "similarity_topk": loss(lambda q: ops.similarity_topk(q, negatives, 4), rows().detach()),
        "EMA.update": average,
        "LARS.step": lars,
        "MemoryQueue.enqueue": queue,
    }


def counted(make: Callable[[], Callable[[], Any]]) -> dict[str, dict[str, list[str]]]:
    """Launches of the second call, forward and backward: the first may compile and keep."""
    call = make()
    for _ in range(2):
        with Count() as forward:
            result = call()
        found = {"forward": {"triton": forward.triton, "torch": forward.torch}}
        if isinstance(result, Tensor) and result.requires_grad:
            with Count() as backward:
                result.backward()
            found["backward"] = {"triton": backward.triton, "torch": backward.torch}
    return found


def measure() -> dict[str, Any]:
    import fastssl
    from fastssl.ops import kept

    # Steps go as if nobody counted.
    with fastssl.use_backend("triton"), mock.patch.object(kept, "watched", return_value=False):
        return {name: counted(make) for name, make in calls().items()}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| call | forward: ours + torch's | backward: ours + torch's |", "| --- | --- | --- |"]
    for name, passes in found.items():
        cells = [
            f"{len(p['triton'])} + {len(p['torch'])}" if (p := passes.get(which)) else ""
            for which in ("forward", "backward")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Count, print, and unless ``--print`` is given write bench/results/launches.{json,md}."""
    if os.environ.get("TRITON_INTERPRET") != "1":  # which Triton asks for once a process
        told = os.environ | {"TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "bench.launches", *argv]
        told["PYTHONPATH"] = os.pathsep.join(
            [str(run.BENCH.parent), str(run.BENCH.parent / "kernels")]
        )
        code = subprocess.run(command, env=told, check=False).returncode
        if code == 0 and "--print" not in argv:
            times, path = host.main(), PATH.with_suffix(".md")
            path.write_text(path.read_text() + times)
            print(times)
        return code
    found = measure()
    if "--print" in argv:
        print(json.dumps(found))
        return 0
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    head = "Launches of one call on CUDA, counted by `fastssl bench launches`.\n\n"
    PATH.with_suffix(".md").write_text(head + table(found))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
