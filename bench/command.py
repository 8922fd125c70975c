"""The options of ``fastssl bench``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from bench import run as runner
from bench.harness import TOLERANCE, Benchmark, Case

# Providers of a plain run: without what is slower and no peer's own code.
LEFT_OUT = {"lightly-formula", "reference"}


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="fastssl bench",
        description="Time ops and losses beside their peers: every answer checked against "
        "float64 first, then all providers interleaved in one process.",
        epilog="As it is: the standard suite, into bench/results/NAME-DEVICE.json, from which "
        "the README's tables are made. With other sizes, dtypes or peers: bench/results/local/. "
        "Without a GPU: `fastssl bench codegen` predicts its kernels' times from machine code. "
        "Whole training steps: fastssl bench steps; launches of a call: fastssl bench launches.",
    )
    words.add_argument("names", nargs="*", metavar="NAME", help=", ".join(runner.names()))
    words.add_argument("--rows", type=int, nargs="+", metavar="M", help="sizes; M = 2N for views")
    words.add_argument("--dim", type=int, metavar="D", help="default: the benchmark's, mostly 128")
    words.add_argument(
        "--dtype", choices=sorted(TOLERANCE), help="default: the benchmark's, mostly float32"
    )
    words.add_argument("--temperature", type=float, default=0.1)
    words.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    words.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        help="whom to run beside fastssl: names, all (with the reference), or none",
    )
    words.add_argument("--rounds", type=int, default=50, help="most turns each")
    words.add_argument(
        "--seconds", type=float, default=15.0, help="about how long one case is timed"
    )
    words.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="on a shared machine: wait up to this long a case for quiet before each turn",
    )
    words.add_argument(
        "--cpu-time",
        action="store_true",
        help="count this process's processor time: with --threads 1, figures that a busy machine "
        "hardly changes",
    )
    words.add_argument("--memory", action="store_true", help="measure memory only, no times")
    words.add_argument("--no-memory", action="store_true", help="times only")
    words.add_argument("--smoke", action="store_true", help="tiny sizes: does it all run?")
    words.add_argument(
        "--threads", type=int, help="torch threads (default: the benchmark's, mostly torch's own)"
    )
    words.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    return words


def wanted(bench: Benchmark, peers: list[str] | None) -> list[str]:
    """Names of the providers to run, ``fastssl`` first."""
    everyone = [provider.name for provider in bench.providers]
    if peers is None:
        return [name for name in everyone if name not in LEFT_OUT]
    peers = [name for word in peers for name in word.split(",") if name]
    if peers in ([], ["none"]):
        return ["fastssl"]
    if peers == ["all"]:
        return everyone
    for name in peers:
        bench.provider(name)  # raises with the known names
    return ["fastssl", *(name for name in everyone if name in peers and name != "fastssl")]


def main(argv: list[str]) -> int:
    if argv[:1] == ["codegen"]:
        from bench.codegen.command import main as codegen  # needs Triton

        return codegen(argv[1:])
    if argv[:1] == ["launches"]:
        from bench import launches

        return launches.main(argv[1:])
    if argv[:1] == ["steps"]:
        from bench import steps

        return steps.main(argv[1:])
    words = parser()
    options = words.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("fastssl bench: torch sees no CUDA device", file=sys.stderr)
        return 1
    threads = torch.get_num_threads()
    try:
        benches = [runner.load(name) for name in options.names or runner.names()]
        chosen = [wanted(bench, options.peers) for bench in benches]
    except ValueError as error:
        words.error(str(error))
    if any(rows < 4 for rows in options.rows or ()):
        words.error("--rows must be at least 4")
    status = 0
    for bench, providers in zip(benches, chosen, strict=True):
        torch.set_num_threads(options.threads or bench.threads or threads)
        status |= run_one(bench, providers, options)
    return status


def run_one(bench: Benchmark, providers: list[str], options: argparse.Namespace) -> int:
    def cases(rows: tuple[int, ...] | list[int]) -> list[Case]:
        dim, dtype = options.dim or bench.dim, options.dtype or bench.dtype
        return [
            Case(m, dim, dtype, options.device, options.temperature, task=task)
            for m in rows
            for task in bench.tasks
        ]

    seconds, rounds = options.seconds, options.rounds
    rows, memory_rows = bench.rows, bench.memory_rows
    standard = options.rows is None and not options.smoke
    if options.smoke:
        rows, memory_rows, seconds, rounds = (128,), (128,), 1.0, 3
    if options.rows is not None:
        rows = memory_rows = tuple(options.rows)
        if not options.memory:
            memory_rows = ()
    if options.memory:
        rows = ()
    if options.no_memory:
        memory_rows = ()
    print(f"{bench.title}; providers: {', '.join(providers)}")
    results = runner.run(
        bench,
        cases(rows),
        providers,
        seconds=seconds,
        rounds=rounds,
        patience=options.patience,
        clock=time.process_time if options.cpu_time else time.perf_counter,
        memory_cases=cases(memory_rows),
    )
    # CUDA's standing file is that of `make gpu`.
    usual = parser().parse_args([])
    whole = standard and all(
        getattr(options, key) == getattr(usual, key)
        for key in (
            "peers",
            "dim",
            "dtype",
            "temperature",
            "device",
            "memory",
            "no_memory",
            "cpu_time",
        )
    )
    folder = runner.RESULTS if whole else runner.RESULTS / "local"
    path = options.out or folder / f"{bench.name}-{options.device}.json"
    runner.save(results, path)
    print(f"\nwritten: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    entries = [entry for case in results["cases"] for entry in case["providers"].values()]
    return int(any("wrong" in entry for entry in entries))
