"""``make gpu`` before it meets a GPU: a rehearsal, and the CUDA branches on a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench import gpu, gpu_worker, machine, run
from fastssl import backends

# What a CUDA machine may lack: all but torch, triton, numpy and pytest. Asked for, it is absent.
BARE = """
from functools import partial
from importlib.machinery import PathFinder

ABSENT = {
    *("PIL", "info_nce", "kornia", "lightly", "matplotlib", "open_clip", "pybind11", "pydantic"),
    *("pydantic_settings", "pytorch_metric_learning", "rich", "scipy", "sklearn", "tensorboard"),
    *("threadpoolctl", "timm", "torchvision", "tqdm", "yaml"),
}


def find(found, name, path=None, target=None):
    return None if name.split(".")[0] in ABSENT else found(name, path, target)


PathFinder.find_spec = partial(find, PathFinder.find_spec)
"""


@pytest.fixture
def bare(tmp_path):
    """The environment of a Python with nothing beyond what ``make gpu`` asks for."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BARE)
    return os.environ | {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_tests_are_collected_on_a_bare_machine(bare):
    command = [sys.executable, "-c", "from bench import gpu; print(*gpu.test_files()[0])"]
    done = subprocess.run(
        command, cwd=gpu.ROOT, env=bare, capture_output=True, text=True, check=True
    )
    told = gpu.environment(True) | {"PYTHONPATH": bare["PYTHONPATH"]}
    told["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu"]
    command += ["-p", "no:cacheprovider", *done.stdout.split()]
    found = subprocess.run(
        command, cwd=gpu.ROOT, env=told, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-3000:]
    assert "test_captures_cuda.py" in found.stdout


@pytest.mark.slow
def test_rehearsal(tmp_path, bare):
    """Everything ``make gpu`` does, by the interpreter and at tiny sizes, on a bare machine."""
    if backends.unavailable("triton"):
        pytest.skip(backends.unavailable("triton"))
    command = [sys.executable, "bench/gpu.py", "--rehearse", "--out", str(tmp_path)]
    command += ["--limit", "1500"]  # of a busy machine
    env = bare | {"OUT": str(tmp_path / "bare")}
    done = subprocess.run(
        command, cwd=gpu.ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "nt_xent-cuda.json").read_text())
    assert results["tests"]["status"] == 0
    assert results["problems"] == []
    assert len(results["cases"]) == 2
    for case in results["cases"]:
        for name in ("fastssl", "eager", "torch.compile"):
            assert {"p50", "ratio", "graph_ms", "graph_ratio"} <= set(case["providers"][name])
    assert "memory_mib" in results["cases"][0]["providers"]["fastssl"]
    assert results["ceilings"]["matmul_bfloat16_tflops"] > 0
    assert "passed" in (tmp_path / "gpu-tests.txt").read_text()
    assert (tmp_path / "nt_xent-cuda.md").exists()
    rivals = results["cases"][0]["providers"]
    for name in ("lightly", "memeff", "cut-cross-entropy"):
        assert "is not installed" in rivals[name]["skipped"]
    assert (
        "Not installed there: cut-cross-entropy, lightly, memeff."
        in (tmp_path / "nt_xent-cuda.md").read_text()
    )
    for name in gpu.IMAGES:
        results = json.loads((tmp_path / f"{name}-cuda.json").read_text())
        (case,) = results["cases"]
        assert results["problems"] == []
        assert case["providers"]["fastssl"]["us_each"] > 0
        compiled = case["providers"].get("torch.compile", {})
        assert ("p50" in compiled) == (name == "augment_32")
    assert "a view" in (tmp_path / "augment-cuda.md").read_text()
    (row,) = json.loads((tmp_path / "codegen-cuda.json").read_text())["rows"]
    assert row["predicted_ms"] > 0
    assert "| nt_xent, 16 × 16, bfloat16 |" in (tmp_path / "codegen-cuda.md").read_text()
    with tarfile.open(tmp_path / "bare" / "gpu-results.tar.gz") as archive:
        assert {"nt_xent-cuda.json", "gpu-tests.txt", "steps-cuda.md"} <= set(archive.getnames())
    told = json.loads((tmp_path / "steps-cuda.json").read_text())["steps"]
    assert [step["step"] for step in told] == list(gpu.STEPS)
    assert all(step["images_per_second"] > 0 for step in told)
    for name in ("info_nce_queue", *gpu.FAMILY):
        results = json.loads((tmp_path / f"{name}-cuda.json").read_text())
        assert results["problems"] == []
        assert results["goals"]
        (case,) = results["cases"]
        for provider in ("fastssl", "eager", "torch.compile"):
            assert {"p50", "ratio", "graph_ms", "graph_ratio"} <= set(case["providers"][provider])


class CudaIsCpu(TorchFunctionMode):
    """Tensors asked for on "cuda" come on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


class Event:
    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)


class CUDAGraph:
    replays = 0

    def replay(self):
        CUDAGraph.replays += 1


@pytest.fixture
def stand_in(monkeypatch):
    """As much of ``torch.cuda`` as the benchmarks touch, on the CPU."""
    generator = torch.Generator
    fakes = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "is_available": lambda: True,
        "synchronize": lambda: None,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph: contextlib.nullcontext(),
        "mem_get_info": lambda: (1 << 36, 1 << 37),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20,
        "max_memory_allocated": lambda: 3 << 20,
        "get_device_name": lambda: "Stand-in",
        "get_device_capability": lambda: (9, 0),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setitem(gpu_worker.SCALES, "cuda", gpu_worker.Scale("cuda", 32, 1, seconds=0.1))
    with CudaIsCpu():
        yield


def test_cuda_branches_on_a_stand_in(stand_in, tmp_path):
    case = {
        "kind": "case",
        "bench": "nt_xent",
        "rows": 32,
        "dim": 8,
        "dtype": "bfloat16",
        "peers": ["fastssl", "eager", "lightly-formula"],
        "graph": True,
        "memory": ["fastssl", "eager"],
        "backend": None,
    }
    items = [
        {"kind": "machine"},
        {"kind": "ceilings"},
        case,
        {"kind": "case", "bench": "no_such", "backend": None},
        *(
            case | {"bench": name, "peers": ["fastssl", "eager"]}
            for name in ("info_nce_queue", "similarity_topk")
        ),
    ]
    order, out = tmp_path / "plan.json", tmp_path / "lines.jsonl"
    numbered = list(enumerate(items))
    order.write_text(
        json.dumps({"device": "cuda", "deadline": time.time() + 100, "items": numbered})
    )
    assert gpu_worker.main([str(order), str(out)]) == 0
    done, started = gpu.read(out)
    assert started == len(items) - 1
    assert done[0]["result"]["gpu"] == "Stand-in"
    assert done[1]["result"]["copy_tb_s"] > 0
    entries = done[2]["result"]["providers"]
    assert entries["fastssl"]["memory_mib"] == 2.0
    assert entries["eager"]["graph_ms"] >= 0
    assert "graph_ms" not in entries["lightly-formula"]
    assert CUDAGraph.replays > 0
    assert "no benchmark" in done[3]["error"]
    for number in range(4, len(items)):
        for entry in done[number]["result"]["providers"].values():
            assert {"p50", "graph_ms", "memory_mib"} <= set(entry)


def test_a_worker_that_dies_costs_its_case_only(tmp_path, monkeypatch):
    """The next one starts after the guilty item."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys\n"
        "plan = json.load(open(sys.argv[1]))\n"
        "out = open(sys.argv[2], 'a')\n"
        "for i, item in plan['items']:\n"
        "    print(json.dumps({'started': i}), file=out, flush=True)\n"
        "    if item['kind'] == 'deadly':\n"
        "        sys.exit(139)\n"
        "    print(json.dumps({'item': i, 'result': i}), file=out, flush=True)\n"
        "    if item['kind'] == 'poison':\n"
        "        sys.exit(3)\n"
    )
    popen = subprocess.Popen

    def start(command, **options):
        return popen([sys.executable, str(script), *command[3:]], **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", start)
    items = [{"kind": kind} for kind in ("fine", "deadly", "poison", "fine", "deadly")]
    done = gpu.measure(items, True, gpu.Clock(60), tmp_path)
    assert {i: "result" in line for i, line in done.items()} == {
        0: True, 1: False, 2: True, 3: True, 4: False,
    }  # fmt: skip


def test_plan_covers_what_was_promised():
    items = gpu.plan(set(), rehearse=False)
    rows = {
        item["rows"]
        for item in items
        if item.get("bench") == "nt_xent" and item["dtype"] == "bfloat16"
    }
    assert {256, 512, 1024, 8192, 32768, 65536, 262144, 1048576} <= rows
    order = [(item["bench"], item["rows"]) for item in items if item["kind"] == "case"]
    family = [("info_nce_queue", 65536), *((name, 8192) for name in gpu.FAMILY)]
    assert order[6:11] == family
    assert {("clip", 32768), *((name, 8192) for name in gpu.ALIKE)} < set(order)
    assert {item.get("bench") for item in gpu.plan({"similarity_lse"}, False)} == {
        None,
        "similarity_lse",
    }
    views = {item["bench"]: item for item in items if item.get("backend") == "native"}
    assert {(name, item["rows"], item["dim"]) for name, item in views.items()} == {
        ("augment", 512, 224), ("augment_32", 512, 32), ("augment_parameters", 4096, 224),
    }  # fmt: skip
    assert {"torch.compile", "kornia", "triton-augment"} < set(views["augment"]["peers"])
    rivals = {item["bench"]: set(item["peers"]) for item in items if item["kind"] == "case"}
    for name, some in gpu.RIVALS.items():
        assert set(some) < rivals[name]
    for item in items:  # every name is one of a provider
        for name in item.get("peers", ()):
            run.load(item["bench"]).provider(name)
    assert gpu.plan({"tests"}, False) == []
    assert gpu.plan({"sanitizer"}, False) == []
    steps = [item["step"] for item in gpu.plan({"steps"}, False) if item["kind"] == "step"]
    assert steps == list(gpu.STEPS)
    assert steps == [item["step"] for item in items if item["kind"] == "step"]
    with pytest.raises(SystemExit, match="no nothing"):
        gpu.plan({"nothing"}, False)


def test_machine_description_holds_no_paths():
    told = machine.describe()
    assert {"cpu", "cores", "torch", "fastssl", "commit", "date"} <= set(told)
    assert not any("/" in str(value) for value in told.values() if value)
