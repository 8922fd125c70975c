"""What ``bench/gpu.py`` measured, as results files, tables, a plot and a list of goals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import goals, report, run
from bench import steps as whole_steps


def collect(
    items: list[dict[str, Any]],
    measured: dict[int, dict[str, Any]],
    told: dict[str, Any],
    folder: Path,
) -> bool:
    """Write a file a benchmark; whether anybody's answer was wrong or one of our cases failed."""
    machine: dict[str, Any] = {}
    ceilings: dict[str, Any] = {}
    cases: dict[str, list[dict[str, Any]]] = {}
    problems: dict[str, list[str]] = {}
    steps: list[dict[str, Any]] = []
    bad = False
    for number, item in enumerate(items):
        answer = measured.get(number, {"error": "not started: the time was out"})
        found = answer.get("result")
        if found is None:
            where = item.get("bench") or item.get("step") or item["kind"]
            size = f" M={item['rows']} {item['dtype']}" if "rows" in item else ""
            problems.setdefault(where, []).append(f"{where}{size}: {answer['error']}")
            bad = bad or (
                item["kind"] in ("case", "step") and "time was out" not in answer["error"]
            )
        elif item["kind"] == "machine":
            machine = found
        elif item["kind"] == "ceilings":
            ceilings = found
        elif item["kind"] == "step":
            steps.append(found)
        elif item["kind"] == "tune":
            write_tuning(found, machine, folder)
        else:
            cases.setdefault(item["bench"], []).append(found)
            ours = found["providers"]["fastssl"]
            bad = bad or "wrong" in ours or "failed" in ours
    if steps:
        write_steps(steps, machine, folder)
    for name in {*cases, *(n for n in problems if n in run.names())}:
        bench = run.load(name)
        results = {
            "bench": name,
            "title": f"{bench.title}, on CUDA",
            "machine": machine,
            "ceilings": ceilings,
            **told,
            "cases": cases.get(name, []),
            "problems": problems.get(name, []),
        }
        path = folder / f"{name}-cuda.json"
        merge(results, path)
        results["goals"] = [goal.judge(results) for goal in bench.goals if goal.device == "cuda"]
        run.save(results, path)
        report.write(path)
        print(f"\n{report.markdown(results)}")
        if any(goal["met"] is not None for goal in results["goals"]):
            print(goals.report(results["goals"]))
    for problem in (line for lines in problems.values() for line in lines):
        print(f"PROBLEM {problem}")
    if ceilings:
        print("ceilings: " + ", ".join(f"{key} {value:.3g}" for key, value in ceilings.items()))
    return bad


def merge(results: dict[str, Any], path: Path) -> None:
    """Keep what an earlier part of the same run (same commit, same machine) left in the file."""
    try:
        earlier = json.loads(path.read_text())
        same = all(
            earlier["machine"].get(key) == results["machine"].get(key)
            for key in ("commit", "gpu", "torch", "triton")
        )
    except (OSError, ValueError, KeyError):
        return
    if same:
        have = {(c["rows"], c["dim"], c["dtype"]) for c in results["cases"]}
        results["cases"] += [
            c for c in earlier["cases"] if (c["rows"], c["dim"], c["dtype"]) not in have
        ]
        for key in ("tests", "ceilings"):
            if not results.get(key) and earlier.get(key):
                results[key] = earlier[key]
    results["cases"].sort(key=lambda case: (case["dtype"], case["dim"], case["rows"]))


def write_steps(found: list[dict[str, Any]], machine: dict[str, Any], folder: Path) -> None:
    """Whole steps, and those that an earlier part of the same run on this commit measured."""
    path = folder / "steps-cuda.json"
    try:
        earlier = json.loads(path.read_text())
        same = all(earlier["machine"].get(k) == machine.get(k) for k in ("commit", "gpu", "torch"))
    except (OSError, ValueError, KeyError):
        same = False
    have = {step["step"] for step in found}
    if same:
        found = [*found, *(step for step in earlier["steps"] if step["step"] not in have)]
    found = sorted(found, key=lambda step: list(whole_steps.STEPS).index(step["step"]))
    whole_steps.save(found, machine, path)
    print(f"\n{path.with_suffix('.md').read_text()}")


def write_tuning(found: dict[str, Any], machine: dict[str, Any], folder: Path) -> None:
    """The tile shapes tried, quickest first."""
    (folder / "tune-cuda.json").write_text(json.dumps({"machine": machine, **found}, indent=1))
    if "tried" not in found:
        return
    print(f"\ntiles, M={found['rows']} {found['dtype']}: shipped {found['shipped_ms']} ms")
    for entry in sorted(found["tried"], key=lambda entry: entry.get("ms", float("inf"))):
        said = entry.get("ms") or entry.get("wrong") or entry.get("failed")
        print(f"  {entry['pass']:9} {tuple(entry['tiles'])!s:24} {said}")


def note_tests(told: dict[str, Any], folder: Path) -> None:
    """The outcome of a run of the tests alone."""
    (folder / "gpu-tests.json").write_text(json.dumps(told, indent=1) + "\n")
