"""Memory a provider needs above its inputs: peak resident set on the CPU, the allocator on CUDA.

On the CPU each measurement is a process of its own (``python -m bench.memory``), since a peak
cannot be told apart from what earlier work left in the heap.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bench.harness import Benchmark, Case, Skip, step

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
WARM_ROWS = 8192  # above this a second step would take too long: a small one must do


def measure(bench: Benchmark, provider: str, case: Case, timeout: float = 600) -> dict[str, Any]:
    """``{"memory_mib": …}``, or ``{"memory_note": …}`` with the reason there is none."""
    try:
        bench.provider(provider).function(case)
    except Skip as skip:
        return {"memory_note": f"skipped – {skip}"}
    if case.device == "cuda":
        try:
            return {"memory_mib": measure_cuda(bench, provider, case) / MIB}
        except Exception as error:
            return {"memory_note": f"failed – {type(error).__name__}"}
    word = json.dumps({"bench": bench.name, "provider": provider, **asdict(case)})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.memory", word],
            cwd=ROOT,
            # Blocks go back to the system when freed: the peak is then what was alive at once,
            # for everybody, not what glibc's heap happened to keep.
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"memory_note": f"no answer within {timeout:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        killed = "killed, out of memory" if done.returncode == -9 else last[:200]
        return {"memory_note": f"failed – {killed}"}
    return {"memory_mib": json.loads(done.stdout.splitlines()[-1])["bytes"] / MIB}


def measure_cuda(bench: Benchmark, provider: str, case: Case) -> int:
    """Bytes allocated at the peak of one step, above what the inputs hold."""
    tensors = bench.inputs(case)
    function = bench.provider(provider).function(case)
    step(function, tensors)  # compilation and workspaces are not the step's
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(function, tensors)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_cpu(bench: Benchmark, provider: str, case: Case) -> int:
    """Growth of the peak resident set over one step, in this process."""
    # A first step loads libraries, starts threads and compiles, which are not the step's needs.
    # What it leaves in the heap would hide some of them, so the heap is handed back.
    first = case if case.rows <= WARM_ROWS else replace(case, rows=64)
    tensors = bench.inputs(case)
    function = bench.provider(provider).function(case)
    if first is case:
        step(function, tensors)
    else:
        step(bench.provider(provider).function(first), bench.inputs(first))
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    # 5 sets the peak back to what is resident now. Where that is not allowed the peak is the whole
    # process's, which is this step's unless the step is tiny.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    step(function, tensors)
    try:
        peak = status("VmHWM")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def status(key: str) -> int:
    """A size from /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def main(argv: list[str]) -> int:
    from bench.run import load

    order = json.loads(argv[0])
    bench, provider = load(order.pop("bench")), order.pop("provider")
    print(json.dumps({"bytes": measure_cpu(bench, provider, Case(**order))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
