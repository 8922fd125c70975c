"""The figures that are kept, and what a change must not do to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import triton

from bench.codegen.catalogue import GOALS, Case
from bench.codegen.chip import Chip
from bench.codegen.compile import key
from bench.codegen.predict import predict

PATH = Path(__file__).parents[1] / "results" / "codegen.json"
SLOWER = 1.05  # than what is kept, by prediction
Rows = dict[str, dict[str, Any]]


def rows(cases: list[Case], chip: Chip) -> Rows:
    """A prediction for each kernel of each case: ``chip / case / kernel``, numbered where a case
    has one twice."""
    found: Rows = {}
    for case in cases:
        seen = set()
        for launch in case.launches(chip):
            if key(launch) in seen:
                continue
            seen.add(key(launch))
            stem = f"{chip.name} / {case.name} / {launch.kernel.__name__}"
            same = sum(name.split(" #")[0] == stem for name in found)
            row = predict(launch, chip).row(chip)
            found[f"{stem} #{same + 1}" if same else stem] = row
    return found


def goals(chip: Chip) -> list[dict[str, Any]]:
    """The goals' whole ops: milliseconds predicted, asked for, and of the floor."""
    return [
        {
            "name": whole.name,
            "predicted_ms": round(whole.milliseconds(chip), 4),
            "goal_ms": round(whole.goal, 4),
            "floor_ms": round(1e3 * whole.floor(chip), 4),
        }
        for whole in GOALS
    ]


def complaints(found: Rows, kept: Rows | None) -> list[str]:
    """Why a change is refused. ``kept`` is None where another compiler made what is kept: then
    only what is wrong by itself."""
    said = []
    for name, row in found.items():
        where = f"{name} ({row['shape']})"
        old = None if kept is None else kept.get(name)
        # A spill that is kept is known; more of it is not.
        if row["spills"] > (old["spills"] if old else 0):
            said.append(f"{where} spills: {row['spills']} bytes and accesses of local memory")
        if row["unit"] == "logit" and not row["tensor"]:
            said.append(f"{where} has no tensor-core instruction in its main loop")
        if old and row["ps"] > SLOWER * old["ps"]:
            said.append(
                f"{where} is predicted at {row['ps']:.3f} ps a {row['unit']}, bound by "
                f"{row['bound']}; {old['ps']:.3f} is kept ({old['shape']}, {old['bound']})"
            )
    return said


def load(path: Path = PATH) -> dict[str, Rows]:
    """What is kept, by Triton's version."""
    return json.loads(path.read_text())["by_triton"] if path.exists() else {}


def kept() -> Rows | None:
    """What is kept of this Triton, or None."""
    return load().get(triton.__version__)


def save(found: Rows, reached: dict[str, list[dict[str, Any]]], path: Path = PATH) -> None:
    """Keep these figures beside what else is kept of this Triton, and a table of all of them."""
    document = json.loads(path.read_text()) if path.exists() else {}
    by_triton = document.get("by_triton", {})
    cases = {_case(name) for name in found}  # anew, with the kernels that they have now
    old = by_triton.get(triton.__version__, {})
    found = {name: row for name, row in old.items() if _case(name) not in cases} | found
    by_triton[triton.__version__] = found
    reached = document.get("goals", {}) | reached
    note = "Predicted from machine code, not measured: bench/codegen."
    made = {"note": note, "goals": reached, "by_triton": by_triton}
    path.write_text(_lines(made) + "\n")
    path.with_suffix(".md").write_text(
        f"# What the kernels cost, predicted\n\n{note} Triton {triton.__version__}; "
        "`fastssl bench codegen --write` makes this page.\n\n"
        + table(found)
        + "".join(f"\n## Whole ops, {name}\n\n{goal_table(g)}" for name, g in reached.items())
    )


def _case(name: str) -> str:
    """``chip / case`` of ``chip / case / kernel``."""
    return " / ".join(name.split(" / ")[:2])


def _lines(value: Any, depth: int = 2) -> str:
    """JSON with a line for each kernel, so that a change of one is a change of one line."""
    if depth < 0 or not isinstance(value, dict):
        return json.dumps(value)
    inside = (f"{json.dumps(name)}: {_lines(v, depth - 1)}" for name, v in value.items())
    return "{\n" + ",\n".join(inside) + "\n}"


def table(found: Rows) -> str:
    """Markdown."""
    lines = [
        "| chip / case / kernel | shape | registers | spills | shared | resident | mix a turn |"
        " ps a unit (best to serial) | bound | of roofline |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in found.items():
        lines.append(
            f"| {name} | {r['shape']} | {r['registers']} | {r['spills']} | {r['shared']} |"
            f" {r['resident']} | {mix(r)} | {r['ps']:.3f} / {r['unit']} ({r['ps_best']:.3f} to"
            f" {r['ps_serial']:.3f}) | {r['bound']} | {r['of_roofline']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def mix(row: dict[str, Any]) -> str:
    """Cycles of the units that a turn takes longest."""
    top = sorted(row["cycles"].items(), key=lambda pair: -pair[1])[:4]
    return ", ".join(f"{unit} {cycles:.0f}" for unit, cycles in top)


def goal_table(reached: list[dict[str, Any]]) -> str:
    lines = [
        "| op | predicted ms | an H200's goal, ms | floor ms | within |",
        "|---|---|---|---|---|",
    ]
    for r in reached:
        fits = "yes" if r["predicted_ms"] <= r["goal_ms"] else "no"
        lines.append(
            f"| {r['name']} | {r['predicted_ms']:.4g} | {r['goal_ms']:.4g} |"
            f" {r['floor_ms']:.4g} | {fits} |"
        )
    return "\n".join(lines) + "\n"
