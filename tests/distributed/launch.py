"""Several gloo processes on this machine, started once for many cases."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# A server that has imported everything forks the ranks: they start at once, and without the
# thread pools of this process.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.nn.parallel", "fastssl", "pytest"])


def launch(cases: Callable[..., None], size: int, *arguments, seconds: float = 60) -> None:
    """Run ``cases(*arguments)`` on so many ranks; a failure of any, or a hang, fails here."""
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.start_processes(
            _rank,
            (size, str(Path(folder, "meet")), seconds, cases, arguments),
            nprocs=size,
            join=False,
            start_method="forkserver",
        )
        deadline = time.monotonic() + seconds
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{size} ranks did not end within {seconds} s")


def _rank(rank: int, size: int, meet: str, seconds: float, cases: Callable, arguments) -> None:
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )
    try:
        cases(*arguments)
    finally:
        dist.destroy_process_group()
