"""The measuring process of ``bench/gpu.py``: a list of items in, a line of JSON an item out.

A process of its own, because one bad memory access ends every later CUDA call of its process: the
parent then starts another for the items that are left.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastssl
from bench import floors, machine, memory, run, steps, tune
from bench.harness import Benchmark, Case, interleave, quantiles, ratio, sample

POISONED = 3  # exit status: the device answers no more, start anew
# Boolean indexing, as lightly does it, asks the device how many rows are left: no graph can.
CAPTURABLE = ("fastssl", "eager", "torch.compile")


@dataclass(frozen=True)
class Scale:
    """What differs between the measurement and its rehearsal."""

    device: str
    matmul_edge: int
    copy_megabytes: int
    seconds: float


SCALES = {
    "cuda": Scale("cuda", 8192, 4096, 5.0),
    "cpu": Scale("cpu", 128, 4, 0.02),
}


def ceilings(scale: Scale) -> dict[str, Any]:
    """Matrix rates and copy bandwidth of this machine."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        product = floors.matmul(scale.device, dtype, scale.matmul_edge)
        best = min(sample(product, 10, scale.device) for _ in range(3))
        name = str(dtype).removeprefix("torch.")
        found[f"matmul_{name}_tflops"] = (
            floors.matmul_flops(scale.device, scale.matmul_edge) / best / 1e12
        )
    copy, count = floors.copy(scale.device, scale.copy_megabytes)
    found["copy_tb_s"] = count / min(sample(copy, 5, scale.device) for _ in range(3)) / 1e12
    return found


def captured(work: Callable[[], object], device: str) -> Callable[[], object]:
    """``work`` as one CUDA graph; itself where there are no graphs."""
    if device != "cuda":
        return work
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()

    def replay(held=results):  # the graph writes into its results: they must live
        graph.replay()

    return replay


def time_graphs(runs, entries, device: str, seconds: float) -> None:
    graphs = {}
    for name in CAPTURABLE:
        if name in runs:
            try:
                graphs[name] = captured(runs[name], device)
            except Exception as error:
                entries[name]["graph_note"] = run.first_line(error)
    times, _ = interleave(graphs, device=device, seconds=seconds)
    for name, taken in times.items():
        entries[name]["graph_ms"] = quantiles(taken)["p50"]
        if "fastssl" in times:
            entries[name]["graph_ratio"] = ratio(taken, times["fastssl"])


def one_case(bench: Benchmark, item: dict[str, Any], scale: Scale) -> dict[str, Any]:
    case = Case(item["rows"], item["dim"], item["dtype"], scale.device)

    def further(runs, entries) -> None:
        if item.get("graph"):
            time_graphs(runs, entries, scale.device, scale.seconds / 2)

    floors.MATMUL_EDGE[scale.device] = scale.matmul_edge
    found = run.run_case(
        bench, case, item["peers"], seconds=scale.seconds, rounds=30, further=further
    )
    print(run.table(found), flush=True)
    for name in item.get("memory", ()):
        if "p50" in found["providers"].get(name, {}):
            free(scale.device)
            found["providers"][name] |= memory.measure(bench, name, case)
    if item.get("memory"):
        print(run.memory_table(found), flush=True)
    return found


def free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def work(item: dict[str, Any], scale: Scale) -> dict[str, Any]:
    if item["kind"] == "machine":
        return machine.describe(scale.device)
    if item["kind"] == "ceilings":
        return ceilings(scale)
    if item["kind"] == "step":
        return steps.measure(item["step"], scale.device, scale.seconds, smoke=scale.device == "cpu")
    if item["kind"] == "tune":
        return tune.sweep(scale.device, item["rows"], item["dim"], item["dtype"], item["until"])
    with fastssl.use_backend(item["backend"]):
        return one_case(run.load(item["bench"]), item, scale)


def healthy(device: str) -> bool:
    """Whether the device still answers, random numbers included (a failed capture breaks them)."""
    try:
        torch.randn(8, device=device).sum().item()
    except Exception:
        return False
    return True


def main(argv: list[str]) -> int:
    """``plan.json results.jsonl``: do the plan's items; append a line for each."""
    plan = json.loads(Path(argv[0]).read_text())
    scale = SCALES[plan["device"]]
    with Path(argv[1]).open("a") as out:

        def tell(**line: Any) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        for number, item in plan["items"]:
            if time.time() > plan["deadline"]:
                tell(item=number, error="not started: the time was out")
                continue
            tell(started=number)
            try:
                tell(item=number, result=work(item, scale))
            except Exception as error:
                tell(item=number, error=run.first_line(error))
                print(f"{item}: {run.first_line(error)}", flush=True)
            free(scale.device)
            if not healthy(scale.device):
                return POISONED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
