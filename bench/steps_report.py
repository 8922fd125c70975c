"""The table and the picture of a results file of whole steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPEEDS = {
    "images_per_second": "fastssl",
    "ready_images_per_second": "fastssl, views ready",
    "lightly_images_per_second": "lightly's loop",
}


def rows(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and lines."""
    head = ["step", "batch", "images/s", "with views ready", "of that", "time in our ops"]
    lines = []
    for step in results["steps"]:
        share, rival = step["share_of_our_ops"], step.get("lightly_skipped", "")
        if "ratio" in step:
            rival = f"{step['lightly_images_per_second']:,.0f}, {step['ratio']:.1f}×"
        lines.append(
            [
                step["title"] + " (tiny: proves that it runs)" * step["smoke"],
                str(step["batch"]),
                f"{step['images_per_second']:,.0f}",
                f"{step['ready_images_per_second']:,.0f}",
                f"{step['of_ready']:.0%}",
                "" if share is None else f"{share:.0%}",
                rival,
            ]
        )
    return [*head, "lightly's loop, images/s"], lines


def below(results: dict[str, Any]) -> str:
    """What the table is of."""
    told = results["machine"]
    where = told.get("gpu") or f"{told.get('cpu')}, {told.get('threads')} threads"
    command = "make gpu" if told.get("gpu") else "fastssl bench steps"
    return (
        "A step: views of uint8 images, forward, loss, backward, optimiser, memories; medians, "
        "in turns with a step over the same views ready in memory. "
        f"{where}, torch {told.get('torch')}, commit {told.get('commit')}, "
        f"{told.get('date', '')[:10]}. Made by `{command}`.\n"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Images a second of each step, a bar for each who was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = results["steps"]
    figure, axis = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for place, (key, name) in enumerate(SPEEDS.items()):
        points = [(i + (place - 1) * 0.27, s[key]) for i, s in enumerate(steps) if key in s]
        if points:
            axis.bar(*zip(*points, strict=True), width=0.25, label=name)
    axis.set_xticks(
        range(len(steps)), [s["title"].replace(", ", ",\n", 1) for s in steps], fontsize=8
    )
    axis.set_yscale("log")
    axis.set_ylabel("images a second")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
