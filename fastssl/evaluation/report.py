"""The judgement as a terminal table, as Markdown, and as files in a run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastssl.evaluation.evaluate import COLUMNS

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "evaluation.json"
MARKDOWN_NAME = "evaluation.md"


def to_table(report: dict[str, Any]) -> Table:
    """The report of `evaluate_encoder` as a ``rich`` table, accuracies in per cent."""
    from rich.table import Table

    table = Table(title="Accuracy of frozen features, %", caption=_caption(report))
    table.add_column("test accuracy")
    for column in COLUMNS:
        table.add_column(column, justify="right", style="bold" if column == "trained" else None)
    for row, cells in report["results"].items():
        table.add_row(row, *(_cell(cells[column]) for column in COLUMNS))
    return table


def to_markdown(report: dict[str, Any]) -> str:
    """The report of `evaluate_encoder` as a Markdown table with its setting in a line below."""
    lines = [
        "| test accuracy, % | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for row, cells in report["results"].items():
        lines.append(f"| {row} | " + " | ".join(_cell(cells[column]) for column in COLUMNS) + " |")
    return "\n".join([*lines, "", _caption(report), ""])


def write_report(report: dict[str, Any], directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``evaluation.json`` and ``evaluation.md`` into a directory; their paths."""
    paths = Path(directory, JSON_NAME), Path(directory, MARKDOWN_NAME)
    paths[0].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(to_markdown(report), encoding="utf-8")
    return paths


def _cell(cell: dict[str, float]) -> str:
    mean = f"{100 * cell['mean']:.1f}"
    return f"{mean} ± {100 * cell['std']:.1f}" if cell["std"] else mean


def _caption(report: dict[str, Any]) -> str:
    setup = report["setup"]
    text = (
        f"{setup['train images']} training and {setup['test images']} test images, "
        f"{setup['classes']} classes; few labels: mean ± standard deviation over "
        f"{setup['draws']} draws from the training split."
    )
    if setup["left_out"]:
        text += f" Left out, a class is too small: {setup['left_out']} labels a class."
    return text
