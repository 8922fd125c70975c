"""Run a benchmark: check, time, memory; a JSON file and a table of plain text."""

from __future__ import annotations

import gc
import importlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import floors, goals, machine, memory
from bench.harness import (
    Benchmark,
    Case,
    Skip,
    check,
    interleave,
    quantiles,
    ratio,
    step,
)

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"


def names() -> list[str]:
    """All benchmarks: the stems of ``bench/*/bench_<name>.py``."""
    return sorted(path.stem.removeprefix("bench_") for path in BENCH.glob("*/bench_*.py"))


def load(name: str) -> Benchmark:
    for path in BENCH.glob(f"*/bench_{name}.py"):
        return importlib.import_module(f"bench.{path.parent.name}.{path.stem}").BENCH
    raise ValueError(f"no benchmark {name!r}; there are {', '.join(names())}")


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def run_case(
    bench: Benchmark,
    case: Case,
    wanted: Sequence[str],
    *,
    seconds: float,
    rounds: int,
    patience: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    further: Callable[[dict[str, Callable[[], object]], dict[str, dict]], None] | None = None,
) -> dict[str, Any]:
    """Check every wanted provider and time those that are right.

    ``further(runs, entries)`` may measure more of those and add it to their entries.
    """
    tensors = bench.inputs(case)
    truth = bench.truth(case, tensors)
    entries: dict[str, dict[str, Any]] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name in wanted:
        try:
            provider = bench.provider(name)
            function = provider.function(case)
            entries[name] = check(case, step(function, tensors), truth, provider.differs)
            if "wrong" not in entries[name]:
                runs[name] = lambda function=function: step(function, tensors)
        except Skip as skip:
            entries[name] = {"skipped": str(skip)}
        except Exception as error:  # one provider's failure is a result, not the end
            entries[name] = {"failed": first_line(error)}
        gc.collect()
    if bench.bytes:
        runs["ceiling"], most = floors.update(case.device)
    else:
        runs["ceiling"] = floors.matmul(case.device, case.torch_dtype)
        most = floors.matmul_flops(case.device)
    times, others = interleave(
        runs, device=case.device, seconds=seconds, rounds=rounds, patience=patience, clock=clock
    )

    rate = most / (quantiles(times.pop("ceiling"))["p50"] * 1e-3)
    floor_ms = (bench.bytes or bench.flops)(case) / rate * 1e3
    for name, taken in times.items():
        entries[name] |= quantiles(taken)
        entries[name]["of_floor"] = floor_ms / entries[name]["p50"]
        if bench.each:
            entries[name]["us_each"] = entries[name]["p50"] * 1e3 / (bench.each[1] * case.rows)
        if "fastssl" in times:
            entries[name]["ratio"] = ratio(taken, times["fastssl"])
    if further is not None:
        del runs["ceiling"]
        further(runs, entries)
    return {
        **({"task": case.task} if case.task else {}),
        "rows": case.rows,
        "dim": case.dim,
        "dtype": case.dtype,
        "device": case.device,
        "temperature": case.temperature,
        "update_gbs" if bench.bytes else "matmul_gflops": rate / 1e9,
        "floor_ms": floor_ms,
        "others": others,
        **({"each": bench.each[0]} if bench.each else {}),
        "providers": entries,
    }


def run(
    bench: Benchmark,
    cases: Iterable[Case],
    wanted: Sequence[str],
    *,
    seconds: float = 15.0,
    rounds: int = 50,
    patience: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    memory_cases: Iterable[Case] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The whole results document; prints each case's table as it comes."""
    cases = list(cases)
    device = cases[0].device if cases else "cpu"
    results: dict[str, Any] = {
        "bench": bench.name,
        "title": bench.title,
        "machine": machine.describe(device),
        "settings": {
            "seconds_per_case": seconds,
            "rounds": rounds,
            "patience": patience,
            "clock": clock.__name__,
        },
        "cases": [],
    }
    for case in cases:
        results["cases"].append(
            run_case(
                bench, case, wanted, seconds=seconds, rounds=rounds, patience=patience, clock=clock
            )
        )
        say(table(results["cases"][-1]))
    for case in memory_cases:
        entries = {name: memory.measure(bench, name, case) for name in wanted}
        found = next(
            (c for c in results["cases"] if (c["rows"], c["dtype"]) == (case.rows, case.dtype)),
            None,
        )
        if found is None:
            found = {key: getattr(case, key) for key in ("rows", "dim", "dtype", "device")}
            found |= {"temperature": case.temperature, "providers": {name: {} for name in wanted}}
            results["cases"].append(found)
        for name, entry in entries.items():
            found["providers"][name] |= entry
        say(memory_table(found))
    results["goals"] = [goal.judge(results) for goal in bench.goals]
    if any(goal["met"] is not None for goal in results["goals"]):
        say("\n" + goals.report(results["goals"]))
    return results


def cell(value: float | None, form: str = "{:.3g}") -> str:
    return "" if value is None else form.format(value)


def milliseconds(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return ""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def columns(rows: list[list[str]]) -> str:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


# Above this share of the processors in others' hands a table carries a warning.
BUSY = 0.05


def named(case: dict[str, Any]) -> str:
    """The case's task before what else it is, where there are several."""
    return f"{case['task']} " if "task" in case else ""


HEAD = ["provider", "best ms", "p20 ms", "p50 ms", "p80 ms", "× fastssl", "of floor"]
HEAD += ["loss err", "grad err", "turns"]


def table(case: dict[str, Any]) -> str:
    """One case's times; whoever has none is named below with the reason."""
    rows, notes = [HEAD], []
    for name, entry in case["providers"].items():
        if "p50" not in entry:
            notes += [f"  {name}: {word} – {entry[word]}" for word in WORDS if word in entry]
            continue
        rows.append(
            [name]
            + [milliseconds(entry[key]) for key in ("best", "p20", "p50", "p80")]
            + [
                cell(entry.get("ratio"), "{:.2f}"),
                cell(entry["of_floor"], "{:.2f}"),
                cell(entry["loss_error"], "{:.0e}"),
                cell(entry["grad_error"], "{:.0e}"),
                str(entry["turns"]),
            ]
        )
    rate, unit = ("update_gbs", "GB/s") if "update_gbs" in case else ("matmul_gflops", "GFLOP/s")
    title = (
        f"\n{named(case)}M={case['rows']} D={case['dim']} {case['dtype']} {case['device']}; "
        f"floor {milliseconds(case['floor_ms'])} ms at {case[rate]:.0f} {unit}"
    )
    notes += [
        f"  {name}: another problem – {entry['differs']}"
        for name, entry in case["providers"].items()
        if "differs" in entry and "p50" in entry
    ]
    if case["others"] > BUSY:
        notes.append(f"  other processes took {case['others']:.0%} of the processors meanwhile")
    return "\n".join([title, columns(rows), *notes])


WORDS = ("skipped", "failed", "wrong")


def memory_table(case: dict[str, Any]) -> str:
    rows = [["provider", "MiB above inputs"]]
    for name, entry in case["providers"].items():
        if "memory_mib" in entry:
            rows.append([name, f"{entry['memory_mib']:.1f}"])
        elif "memory_note" in entry:
            rows.append([name, entry["memory_note"]])
    return f"\nmemory, M={case['rows']} {case['dtype']}\n" + columns(rows)


def save(results: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
