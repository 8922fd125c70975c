"""``make gpu``: build, test and measure on whatever CUDA machine this is.

Needs no network and nothing beyond torch, triton, numpy and pytest (matplotlib for the plot). Every
part is guarded: what fails is written down and the rest goes on. ``--rehearse`` does the same
without a GPU, by Triton's interpreter at tiny sizes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

LIMIT = 440.0  # seconds; `make gpu` promises eight minutes
SHARE_OF_TESTS = 0.4
STUCK = 150.0  # seconds without a word from the worker
# The rehearsal's tests: every kind of body that runs without a GPU, once or twice.
REHEARSED = (
    "collapsed and 12 or (bitwise and not loss) or hundreds or nothing_left"
    " or (similarity and float32) or goes_on"
    " or (family and (number-float32 or waiting or (ties and bfloat16))) or op_runs"
)
SANITIZED = "op_runs or waits_for_nothing"  # a call of every op; steps (no graphs: see below)

# Losses and ops beside NT-Xent and a queue, the most telling first; then those much like them.
FAMILY = ("clip", "sup_con", "siglip", "similarity_topk")
ALIKE = ("multi_view", "dcl", "similarity_topk_200")
# Ops bound by memory: rows and dtype of each, and whom to run beside fastssl.
STREAMS = {
    "sinkhorn": (2048, "float32", ["eager", "torch.compile"]),
    "sinkhorn_65536": (2048, "float32", ["eager", "torch.compile"]),
    "dino": (64, "bfloat16", ["eager", "torch.compile"]),
    "ema_update": (318, "float32", ["eager", "foreach"]),
    "ema_update_master": (318, "float32", ["eager", "foreach"]),
    "lars_step": (159, "float32", ["eager", "foreach"]),
}
REHEARSED_STREAMS = ("sinkhorn", "ema_update", "lars_step")
# Images and pixels a side of ops that CUDA C++ serves, and whom to run beside fastssl.
VIEWS = ["torch.compile", "kornia", "triton-augment"]
IMAGES = {
    "augment": (512, 224, VIEWS),
    "augment_32": (512, 32, VIEWS),
    "augment_parameters": (4096, 224, ["reference"]),
}
# Peers that are installed or are reported not to be.
RIVALS = {
    "nt_xent": ["memeff", "cut-cross-entropy"],
    "info_nce_queue": ["cut-cross-entropy"],
    "clip": ["memeff"],
}
STEPS = ("cifar", "simclr", "moco", "swav")  # of bench/steps.py
SANITIZING = 90.0  # seconds at most for the memory checker
PREDICTING = 90.0  # ... for predictions beside the measurements


class Clock:
    """What is left of the time."""

    def __init__(self, limit: float) -> None:
        self.end = time.time() + limit

    def left(self) -> float:
        return self.end - time.time()


def environment(rehearse: bool) -> dict[str, str]:
    """That of the child processes: both source roots importable, the right kernels asked for."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    told = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths)), PYTHONUNBUFFERED="1")
    told.pop("TRITON_INTERPRET", None)
    # Where no row says otherwise (whole steps, the tuning): what Triton does not serve is an error.
    told["FASTSSL_BACKEND"] = "triton"
    if rehearse:
        told |= {"TRITON_INTERPRET": "1", "FASTSSL_BENCH_COMPILER": "aot_eager"}
        told |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        told["PYTHONWARNINGS"] = "ignore::RuntimeWarning"  # numpy's, of the interpreter
    return told


def build(rehearse: bool, clock: Clock) -> dict[str, Any]:
    """The native library, in place. Nothing on the GPU depends on it, so failure is only told."""
    if rehearse:
        return {"build": "left out of the rehearsal"}
    begin = time.time()
    try:
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=min(150.0, max(clock.left(), 1)),
            check=False,
        )
        lines = (done.stdout + done.stderr).strip().splitlines()
        said = "built" if done.returncode == 0 else "failed: " + "\n".join(lines[-5:])
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"failed: {type(error).__name__}"
    return {"build": said, "seconds": round(time.time() - begin, 1)}


def test_files() -> tuple[list[str], str]:
    """Files with tests for a CUDA device; and which of them are left out here, and why."""
    marked = [path for path in ROOT.glob("tests/**/test_*.py") if "mark.gpu" in path.read_text()]
    folder = ROOT / "tests" / "gpu"
    files, left = [str(folder)], []
    lacks = [name for name in ("pydantic", "PIL") if not importlib.util.find_spec(name)]
    for path in sorted(path for path in marked if folder not in path.parents):
        if lacks and path.parent.name in ("data", "training"):
            left.append(path.name)
        else:
            files.append(str(path))
    why = f"left out, for want of {', '.join(lacks)}: {', '.join(left)}" if left else ""
    return files, why


def test(rehearse: bool, limit: float, folder: Path) -> dict[str, Any]:
    """pytest in a process of its own; its whole output goes to a file as well."""
    files, left = test_files()
    if rehearse:
        files = [str(ROOT / "tests" / "gpu"), "-k", REHEARSED]
    command = [sys.executable, "-m", "pytest", *files, "-m", "gpu", "-q", "--durations=5"]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    # Most of the tests' time is compilation, a kernel for each width and dtype: on all cores.
    if not rehearse and importlib.util.find_spec("xdist"):
        command += ["-n", str(max(1, min(12, (os.cpu_count() or 2) * 3 // 4)))]
    told = environment(rehearse) | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    told.pop("FASTSSL_BACKEND")  # the tests ask for what they want
    begin, log = time.time(), folder / "gpu-tests.txt"
    with log.open("w") as out:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=told, stdout=out, stderr=out, timeout=limit, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    text = log.read_text().replace(str(ROOT) + "/", "")
    log.write_text(text)
    lines = text.strip().splitlines() or [""]
    failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR "))]
    print("\n".join(failed[:40] + lines[-1:]), flush=True)
    late = f"stopped after {limit:.0f} s: run them alone, with --only tests and a larger --limit"
    summary = late if status == 124 else lines[-1].strip("= ")
    return {
        "status": status,
        "summary": re.sub(r" in [\d.]+s.*", "", summary),
        "failed": failed,
        "left_out": left,
        "seconds": round(time.time() - begin, 1),
    }


def sanitize(rehearse: bool, limit: float, folder: Path) -> dict[str, Any]:
    """Some tests under compute-sanitizer, if there is one; all it says goes to a file."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if rehearse or not Path(tool).exists():
        return {"summary": "left out of the rehearsal" if rehearse else "not on this machine"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "pytest"]
    command += [
        str(ROOT / "tests" / "gpu" / f"test_{name}_cuda.py") for name in ("captures", "steps")
    ]
    command += ["-q", "-p", "no:cacheprovider", "-k", SANITIZED]
    # Each tensor is memory of its own to the checker; without the cache no graph can be captured.
    told = environment(rehearse) | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    told.pop("FASTSSL_BACKEND")
    log = folder / "gpu-sanitizer.txt"
    with log.open("w") as out:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=told, stdout=out, stderr=out, timeout=limit, check=False
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"summary": f"stopped: {type(error).__name__} after {limit:.0f} s"}
    text = log.read_text().replace(str(ROOT) + "/", "")
    log.write_text(text)
    if "Device not supported" in text:
        return {"summary": "refuses this device: Device not supported"}
    counted = [line for line in text.splitlines() if "ERROR SUMMARY" in line]
    return {"status": status, "summary": counted[-1].strip("= ") if counted else f"exit {status}"}


def predict(rehearse: bool, limit: float, folder: Path) -> dict[str, Any]:
    """Predictions beside what has been measured; Triton compiles, whatever the tests ran by."""
    command = [sys.executable, "-m", "bench.codegen.beside", str(folder)]
    command += ["--most", "1"] if rehearse else []
    told = environment(rehearse)
    told.pop("TRITON_INTERPRET", None)
    try:
        status = subprocess.run(command, cwd=ROOT, env=told, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return {"summary": f"stopped after {limit:.0f} s"}
    return {"status": status, "summary": "codegen-cuda.md" if not status else f"exit {status}"}


def plan(only: set[str], rehearse: bool) -> list[dict[str, Any]]:
    """What to measure, most telling first, since the time may run out."""
    lightly = "lightly-formula"
    if not rehearse:
        try:
            import lightly as _  # noqa: F401

            lightly = "lightly"
        except Exception:  # absent, or present and broken: either way its arithmetic is here
            pass
    peers = ["fastssl", "eager", "torch.compile", *{"lightly": 0, lightly: 0}]

    def case(rows: int, dtype: str = "bfloat16", name: str = "nt_xent", **more: Any):
        item = {"kind": "case", "bench": name, "rows": rows, "dim": 128, "dtype": dtype}
        some = {"nt_xent": peers, "similarity_lse": peers[:2]}.get(name, peers[:3])
        some = [*some, *RIVALS.get(name, ())]
        if name in STREAMS:
            some = ["fastssl", *STREAMS[name][2]]
        # Of a backend that is asked for: a missing kernel would quietly be served, and measured,
        # by the reference.
        item |= {"peers": some, "graph": rows <= 8192, "memory": some, "backend": "triton"}
        return item | more

    def images(name: str, rows: int, side: int, who: list[str], **more: Any):
        who = ["fastssl", *who]
        more = {"dim": side, "backend": "native", "peers": who, "memory": who} | more
        return case(rows, "bfloat16", name, **more)

    if rehearse:
        cases = [
            case(16, dim=16, memory=["fastssl"]),
            case(24, "float32", dim=16, memory=[]),
            case(16, name="similarity_lse", dim=16, memory=[]),
            *(case(24, name=name, dim=16, memory=[]) for name in ("info_nce_queue", *FAMILY)),
            *(case(3, "float32", name=name, memory=[]) for name in REHEARSED_STREAMS),
            *(
                # What is compiled is the same for both sizes of views.
                images(
                    name,
                    4,
                    side if side == 32 else 96,
                    who if name != "augment" else who[1:],
                    memory=[],
                    backend=None,
                )
                for name, (_, side, who) in IMAGES.items()
            ),
        ]
    else:
        cases = [case(rows) for rows in (8192, 32768, 1024, 256, 65536, 512)]
        cases += [case(65536, name="info_nce_queue", graph=True)]
        cases += [case(8192, name=name) for name in FAMILY]
        cases += [images(name, *rest) for name, rest in IMAGES.items()]
        cases += [case(rows, dtype, name=name) for name, (rows, dtype, _) in STREAMS.items()]
        cases += [case(rows, peers=["fastssl"], memory=["fastssl"]) for rows in (262144, 1048576)]
        cases += [case(32768, name="clip"), *(case(8192, name=name) for name in ALIKE)]
        cases += [case(8192, "float32"), case(32768, "float32"), case(2048), case(4096)]
        cases += [case(32768, name="similarity_lse")]
    names = {item["bench"] for item in cases}
    if only and "bench" not in only:
        cases = [item for item in cases if item["bench"] in only]
    tuning = [{"kind": "tune", "rows": 32768, "dim": 128, "dtype": "bfloat16"}]
    steps = [{"kind": "step", "step": name} for name in STEPS]
    if only and not only & {"bench", "steps"}:
        steps = []
    unknown = only - names - {"tests", "bench", "tune", "steps", "sanitizer", "codegen"}
    if unknown:
        raise SystemExit(
            f"--only: no {', '.join(sorted(unknown))}; there are "
            + "tests, bench, steps, tune, sanitizer, codegen, "
            + ", ".join(sorted(names))
        )
    wants_tuning = not only or "tune" in only
    # Steps after the first half: if time runs out, not all of it has gone to one kind.
    half = len(cases) // 2
    work = [*cases[:half], *steps, *cases[half:], *(tuning if wants_tuning else [])]
    return [{"kind": "machine"}, {"kind": "ceilings"}, *work] if work else []


def measure(
    items: list[dict[str, Any]], rehearse: bool, clock: Clock, folder: Path
) -> dict[int, dict[str, Any]]:
    """Every item's result or error, by its number, over as many worker processes as it takes."""
    order, lines = folder / "gpu-plan.json", folder / "gpu-lines.jsonl"
    lines.unlink(missing_ok=True)
    lines.touch()
    done: dict[int, dict[str, Any]] = {}
    while len(done) < len(items) and clock.left() > 0:
        rest = [
            (i, item | {"until": clock.end - 10}) for i, item in enumerate(items) if i not in done
        ]
        order.write_text(
            json.dumps(
                {
                    "device": "cpu" if rehearse else "cuda",
                    "deadline": clock.end - 20,
                    "items": rest,
                }
            )
        )
        worker = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu_worker", str(order), str(lines)],
            cwd=ROOT,
            env=environment(rehearse),
        )
        ended = wait(worker, lines, clock)
        done, started = read(lines)
        if ended == 0:
            break
        # Whatever it was at is what it died of; never try that again.
        guilty = started if started is not None and started not in done else None
        if guilty is None:
            guilty = rest[0][0] if rest[0][0] not in done else None
        if guilty is not None:
            with lines.open("a") as out:
                out.write(json.dumps({"item": guilty, "error": f"stopped: {ended}"}) + "\n")
        done, _ = read(lines)
    order.unlink(missing_ok=True)
    lines.unlink(missing_ok=True)
    return done


def wait(worker: subprocess.Popen, lines: Path, clock: Clock) -> int | str:
    """The worker's exit status, or why it was stopped."""
    size, since = -1, time.time()
    while True:
        try:
            return worker.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            pass
        if lines.stat().st_size != size:
            size, since = lines.stat().st_size, time.time()
        silent = time.time() - since
        if silent > STUCK or clock.left() < -15:
            worker.kill()
            worker.wait()
            return "the time was out" if clock.left() < 0 else f"no answer for {silent:.0f} s"


def read(lines: Path) -> tuple[dict[int, dict[str, Any]], int | None]:
    """Results and errors by item, and the item last begun."""
    done, started = {}, None
    for line in lines.read_text().splitlines():
        told = json.loads(line)
        if "started" in told:
            started = told["started"]
        else:
            done[told["item"]] = told
    return done, started


def main(argv: list[str]) -> int:
    words = argparse.ArgumentParser(prog="python bench/gpu.py", description=__doc__)
    words.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="tests, bench, steps, tune, sanitizer, codegen (predictions beside what an earlier "
        "part measured), a benchmark",
    )
    words.add_argument("--limit", type=float, default=LIMIT, help="seconds for all of it")
    words.add_argument("--rehearse", action="store_true", help="without a GPU, at tiny sizes")
    words.add_argument("--out", type=Path, help="folder for the results (default: bench/results)")
    options = words.parse_args(argv)
    clock, only = Clock(options.limit), set(options.only)
    items = plan(only, options.rehearse)
    import torch

    if not (options.rehearse or torch.cuda.is_available()):
        print("make gpu: torch sees no CUDA device (to rehearse: --rehearse)", file=sys.stderr)
        return 1
    from bench import gpu_results

    results = ROOT / "bench" / "results"
    folder = options.out or (results / "local" / "rehearsal" if options.rehearse else results)
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = build(options.rehearse, clock)
    print(f"native library: {told['build']}", flush=True)
    status = 0
    if not only or "tests" in only:
        share = SHARE_OF_TESTS if items else 1.0
        told["tests"] = test(options.rehearse, max(30.0, clock.left() * share), folder)
        status = told["tests"]["status"]
    if (not only or "sanitizer" in only) and clock.left() > 0:
        told["sanitizer"] = sanitize(options.rehearse, min(SANITIZING, clock.left()), folder)
        print(f"compute-sanitizer: {told['sanitizer']['summary']}", flush=True)
        status = status or int(told["sanitizer"].get("status", 0) != 0)
    if items:
        measured = measure(items, options.rehearse, clock, folder)
        wrong = gpu_results.collect(items, measured, told, folder)
        status = status or int(wrong)
    if (not only or only & {"bench", "codegen"}) and clock.left() > 0:
        predicted = predict(options.rehearse, min(PREDICTING, clock.left()), folder)
        print(f"predicted and measured: {predicted['summary']}")
        status = status or int(predicted.get("status", 0) != 0)
    if not items:
        gpu_results.note_tests(told, folder)
    if "tests" in told:
        print(f"\ntests: {told['tests']['summary']}; {told['tests']['left_out']}".rstrip("; "))
    print(f"{options.limit - clock.left():.0f} of {options.limit:.0f} s taken")
    outside = os.environ.get("OUT")
    if outside:
        # As one file: a folder that is collected may hold only so many.
        made = [
            p for p in sorted(folder.iterdir()) if "cuda" in p.name or p.name.startswith("gpu-")
        ]
        with tarfile.open(Path(outside) / "gpu-results.tar.gz", "w:gz") as archive:
            for path in made:
                archive.add(path, path.name)
    return 1 if status else 0


if __name__ == "__main__":
    # In place of this folder, whose files are no top-level modules.
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]
    sys.exit(main(sys.argv[1:]))
