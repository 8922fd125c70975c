"""The judgement as a terminal table, as Markdown, and as files in a run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastssl.evaluation.evaluate import COLUMNS
from fastssl.evaluation.tasks import RANK_ME

if TYPE_CHECKING:
    from rich.table import Table

JSON_NAME = "evaluation.json"
MARKDOWN_NAME = "evaluation.md"


def to_table(report: dict[str, Any]) -> Table:
    """The report of `evaluate_encoder` as a ``rich`` table, all but RankMe in per cent."""
    from rich.table import Table

    table = Table(title="What the features are worth", caption=_caption(report))
    table.add_column("test images, %")
    for column in COLUMNS:
        table.add_column(column, justify="right", style="bold" if column == "trained" else None)
    for row, cells in report["results"].items():
        table.add_row(row, *(cell(row, cells.get(column)) for column in COLUMNS))
    return table


def to_markdown(report: dict[str, Any]) -> str:
    """The report of `evaluate_encoder` as a Markdown table with its setting in a line below."""
    lines = [
        "| test images, % | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * len(COLUMNS),
    ]
    for row, cells in report["results"].items():
        shown = (cell(row, cells.get(column)) for column in COLUMNS)
        lines.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", _caption(report), ""])


def write_report(report: dict[str, Any], directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``evaluation.json`` and ``evaluation.md`` into a directory; their paths."""
    paths = Path(directory, JSON_NAME), Path(directory, MARKDOWN_NAME)
    paths[0].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    paths[1].write_text(to_markdown(report), encoding="utf-8")
    return paths


def cell(row: str, of: dict[str, float] | None) -> str:
    """Mean and deviation as text: in per cent, RankMe in dimensions; empty where there is none."""
    if of is None:
        return ""
    factor = 1 if row == RANK_ME else 100
    mean = f"{factor * of['mean']:.1f}"
    return f"{mean} ± {factor * of['std']:.1f}" if of["std"] else mean


def _caption(report: dict[str, Any]) -> str:
    setup = report["setup"]
    text = f"{setup['train images']} training"
    of = f" of {setup['data']}" if "data" in setup else ""
    if "test images" not in setup:
        return f"{text} images{of}."
    text += f" and {setup['test images']} test images{of}, {setup['classes']} classes."
    if left_out := len(setup.get("unreadable", [])):
        text += f" Unreadable files: {left_out}."
    if "few-labels" in setup["tasks"]:
        text += (
            " Few labels: mean ± standard deviation over "
            f"{setup['draws']} draws from the training split."
        )
        if setup["left_out"]:
            text += f" Left out, a class is too small: {setup['left_out']} labels a class."
    if "semi-supervised" in setup["tasks"]:
        text += f" Shares of the labels: over {setup['fine-tunings']} draws."
    return text
