"""Tables and plots from the results files: ``python bench/report.py [--readme]``.

README.md holds marked sections, ``<!-- bench:nt_xent-cpu -->`` … ``<!-- /bench -->``, each filled
from ``bench/results/<name>.json``. Nothing in them is written by hand, and a test holds them to it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
SECTION = re.compile(r"(<!-- bench:([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
COMMANDS = {"cpu": "fastssl bench {bench}", "cuda": "make gpu"}
NOT_INSTALLED = "not installed"  # of bench/peers.py
ABSENT = {"cuda": "Not measured yet: no CUDA machine has run `make gpu`.\n"}


def milliseconds(value: float) -> str:
    """Three significant digits, never an exponent."""
    if value < 1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def mebibytes(value: float) -> str:
    return f"{value:,.1f} MiB" if value < 1024 else f"{value / 1024:,.1f} GiB"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def providers(results: dict[str, Any], figure: str) -> list[str]:
    """Names of those that have the figure anywhere, fastssl first."""
    names: list[str] = []
    for case in results["cases"]:
        for name, entry in case["providers"].items():
            if figure in entry and name not in names:
                names.append(name)
    return sorted(names, key=lambda name: name != "fastssl")


def label(case: dict[str, Any], results: dict[str, Any]) -> str:
    """The case's task and size, and its dtype where the file has several."""
    several = len({c["dtype"] for c in results["cases"]}) > 1
    task = f"{case['task']} " if "task" in case else ""
    return f"{task}{case['rows']:,}" + (f" {case['dtype']}" if several else "")


def times(results: dict[str, Any]) -> str:
    """fastssl's time and share of the floor, and how many times longer each peer takes."""
    peers = [name for name in providers(results, "p50") if name != "fastssl"]
    graphs = bool(providers(results, "graph_ms"))
    word = next((case["each"] for case in results["cases"] if "each" in case), None)
    head = ["rows", "fastssl, ms"] + ["in a CUDA graph, ms"] * graphs
    head += [f"µs a {word}", f"{word}s/s"] * bool(word) + ["of the floor"]
    rows = []
    for case in results["cases"]:
        ours = case["providers"].get("fastssl", {})
        if not any("p50" in entry for entry in case["providers"].values()):
            continue
        row = [label(case, results), milliseconds(ours["p50"]) if "p50" in ours else mark(ours)]
        if graphs:
            row.append(milliseconds(ours["graph_ms"]) if "graph_ms" in ours else "")
        if word:
            one = ours.get("us_each")
            row += [milliseconds(one), f"{1e6 / one:,.0f}"] if one else ["", ""]
        row.append(f"{ours['of_floor']:.2f}" if "of_floor" in ours else "")
        for name in peers:
            entry = case["providers"].get(name, {})
            row.append(f"{entry['ratio']:.1f}×" if "ratio" in entry else mark(entry))
        rows.append(row)
    if not rows:
        return ""
    return markdown_table(head + peers, rows) + differences([results]) + absent(results)


def absent(results: dict[str, Any]) -> str:
    """A line that names the peers that were not there to be measured."""
    skipped = {
        name
        for case in results["cases"]
        for name, entry in case["providers"].items()
        if NOT_INSTALLED in entry.get("skipped", "")
    }
    return f"\nNot installed there: {', '.join(sorted(skipped))}.\n" if skipped else ""


def differences(files: list[dict[str, Any]]) -> str:
    """A line for each provider whose problem is another, in any of the files."""
    found = {
        name: entry["differs"]
        for results in files
        for case in results["cases"]
        for name, entry in case["providers"].items()
        if "differs" in entry and "ratio" in entry
    }
    return "".join(f"\n{name}: another problem – {text}.\n" for name, text in found.items())


def memory(results: dict[str, Any]) -> str:
    names = providers(results, "memory_mib")
    rows = []
    for case in results["cases"]:
        entries = case["providers"]
        if any("memory_mib" in entry for entry in entries.values()):
            row = [label(case, results)]
            for name in names:
                entry = entries.get(name, {})
                note = entry.get("memory_note", "")
                row.append(mebibytes(entry["memory_mib"]) if "memory_mib" in entry else short(note))
            rows.append(row)
    return markdown_table(["rows", *names], rows) if rows else ""


def mark(entry: dict[str, Any]) -> str:
    """What stands for a provider without a ratio: its time, or a word for why it has none."""
    if "p50" in entry:
        return milliseconds(entry["p50"]) + " ms"
    if "wrong" in entry:
        return "wrong"
    return short(entry.get("skipped") or entry.get("failed") or "")


def short(reason: str) -> str:
    if "GiB" in reason or "memory" in reason.lower() or "OutOf" in reason:
        return "out of memory"
    return "–"


def source(results: dict[str, Any]) -> str:
    if not results["cases"]:
        return ""
    told = results["machine"]
    device = "cuda" if told.get("gpu") else "cpu"
    where = f"{told.get('cpu')}, {told.get('threads')} threads"
    if device == "cuda":
        where = f"{told.get('gpu')}, CUDA {told.get('cuda')}, triton {told.get('triton')}"
    first = results["cases"][0]
    worst = max((case.get("others", 0.0) for case in results["cases"]), default=0.0)
    return (
        f"{results['title']}; D = {first['dim']}, {first['dtype']}, temperature "
        f"{first['temperature']:g}; times are medians, peers as multiples of fastssl's in the same "
        f"rounds. {where}, torch {told.get('torch')}, commit {told.get('commit')}, "
        f"{told.get('date', '')[:10]}"
        + (f"; other processes held up to {worst:.0%} of the processors" if worst > 0.05 else "")
        + f". Made by `{COMMANDS[device].format(bench=results['bench'])}`.\n"
    )


def goals(results: dict[str, Any]) -> str:
    rows = [
        [goal["goal"], f"{goal['value']:.3g}", "met" if goal["met"] else "**missed**"]
        for goal in results.get("goals", [])
        if goal["met"] is not None
    ]
    return markdown_table(["goal", "measured", ""], rows) if rows else ""


def judged(results: dict[str, Any]) -> str:
    """What frozen features are worth, from a file of bench/digits.py."""
    from fastssl.evaluation.report import RANK_ME, cell

    evaluation, told = results["evaluation"], results["machine"]
    columns = list(next(iter(evaluation["results"].values())))
    rows = [
        [row, *(cell(row, cells.get(name)) for name in columns)]
        for row, cells in evaluation["results"].items()
    ]
    setup, config = evaluation["setup"], results["config"]
    return markdown_table(["test images, %", *columns], rows) + (
        f"\n{setup['train images']:,} training and {setup['test images']:,} test images; mean and "
        f"standard deviation over {setup['draws']} draws of labels from the training split, the "
        f"untrained encoder over {setup['untrained initialisations']} initialisations; raw pixels "
        f"meet the same logistic regression"
        + ("; k-means and RankMe of training features" if RANK_ME in evaluation["results"] else "")
        + f". {config['epochs']} steps of {config['batch_size']:,} "
        f"images in chunks of {config['chunk_size']}. Training, evaluation and pictures took "
        f"{results['seconds']:.0f} s ({results['processor_seconds']:.0f} s of processor time): "
        f"{told.get('cpu')}, {told.get('threads')} threads, torch {told.get('torch')}, commit "
        f"{told.get('commit')}"
        + (
            f"; other processes held {results['others']:.0%} of the processors"
            if results["others"] > 0.05
            else ""
        )
        + ". Made by `python bench/digits.py`, which does as `make train` does.\n"
    )


def markdown(results: dict[str, Any]) -> str:
    """All that a results file says, for a reader."""
    if "evaluation" in results:
        return judged(results)
    if "steps" in results:
        from bench import steps_report

        table = markdown_table(*steps_report.rows(results))
        return f"{table}\n{steps_report.below(results)}"
    parts = [times(results)]
    table = memory(results)
    if table:
        parts.append("Memory above the inputs at the peak of a step:\n\n" + table)
    parts.append(source(results))
    return "\n".join(part for part in parts if part)


# The losses' results in the README's order, all of one machine.
LOSSES = (
    "nt_xent_zen4",
    "multi_view",
    "info_nce_queue",
    "clip",
    "siglip",
    "sup_con",
    "dcl",
    "similarity_topk",
)
STREAMS = (
    "sinkhorn",
    "dino",
    "dino_linear",
    "ema_update",
    "ema_update_master",
    "lars_step",
    "lars_step_ema",
    "augment",
    "augment_32",
)
MACHINE = (
    "All on two cores of an EPYC of 256-bit vector units (Zen 4); commits and versions: "
    "bench/results.\n"
)
# Sections of one line a benchmark: which, and what is said below.
TABLES = {
    "losses": (
        LOSSES,
        "Forward + backward (`similarity_topk`: forward), D = 128, float32; others as multiples "
        "of fastssl's time in the same rounds; memory above the inputs. The floor is the time of "
        "the products that no streamed method does without, at the rate of torch's own product in "
        "the same rounds. " + MACHINE,
    ),
    "streams": (
        STREAMS,
        "Rows: samples (`sinkhorn`, 3,000 prototypes; `dino`, 65,536, forward + backward), tensors "
        "of a ResNet-50 (`ema_update`, `lars_step`) or images, two views of each of 224 or 32 "
        "pixels a side (`augment`, `augment_32`, in bfloat16; the others in float32). "
        "The floor is the time of the bytes that have to move, at the rate of an update in place "
        "in the same rounds. `augment` and `augment_32` on one core, all others "
        + MACHINE.removeprefix("All "),
    ),
}
BASELINES = ("eager", "torch.compile")


def lines(table: str, folder: Path = RESULTS) -> str:
    """One line for each benchmark on a CPU: its largest size, beside plain PyTorch and peers."""
    names, below = TABLES[table]
    rows, files = [], []
    for name in names:
        path = folder / f"{name}-cpu.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        files.append(results)
        timed = [c for c in results["cases"] if "p50" in c["providers"].get("fastssl", {})]
        case = max(timed, key=lambda case: case["rows"])
        entries = case["providers"]
        ratios = {k: f"{e['ratio']:.1f}×" for k, e in entries.items() if "ratio" in e}
        others = [k for k in ratios if k not in (*BASELINES, "fastssl", "reference")]
        held = {k: e["memory_mib"] for k, e in entries.items() if "memory_mib" in e}
        rows.append(
            [
                f"`{results['bench']}`",
                f"{case['rows']:,}",
                milliseconds(entries["fastssl"]["p50"]),
                f"{entries['fastssl']['of_floor']:.2f}",
                *(ratios.get(k, "") for k in BASELINES),
                ", ".join(f"{k} {ratios[k]}" for k in others),
                mebibytes(held["fastssl"]) if "fastssl" in held else "",
                mebibytes(held["eager"]) if "eager" in held else "",
            ]
        )
    if not rows:
        return "Not measured yet.\n"
    head = ["`fastssl bench …`", "rows", "ms", "of the floor", *BASELINES, "peers", "memory"]
    return markdown_table([*head, "eager's"], rows) + differences(files) + f"\n{below}"


def section(name: str, folder: Path = RESULTS) -> str:
    """What stands between the marks of ``bench:name``."""
    if name in TABLES:
        return lines(name, folder)
    path = folder / f"{name}.json"
    if not path.exists():
        return ABSENT.get(name.rsplit("-", 1)[-1], "Not measured yet.\n")
    text = markdown(json.loads(path.read_text()))
    picture = path.with_suffix(".png")
    if picture.exists():
        text += f"\n![{name}: time and memory over batch size](bench/results/{picture.name})\n"
    return text


def refreshed(readme: str, folder: Path = RESULTS) -> str:
    """The README's text with every marked section made anew."""
    return SECTION.sub(
        lambda found: found.group(1) + section(found.group(2), folder) + found.group(3), readme
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Time (and memory, where measured) over M, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dtypes = {case["dtype"]: None for case in results["cases"]}
    panels = [
        (figure, title, dtype)
        for figure, title in (("p50", "ms, forward + backward"), ("memory_mib", "MiB above inputs"))
        for dtype in dtypes
        if any(
            figure in entry
            for case in results["cases"]
            if case["dtype"] == dtype
            for entry in case["providers"].values()
        )
    ]
    if not panels:
        return
    figure_, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4), squeeze=False, layout="constrained"
    )
    colours = {
        name: "black" if name == "fastssl" else f"C{i}"
        for i, name in enumerate(providers(results, "p50") or providers(results, "memory_mib"))
    }
    for axis, (figure, title, dtype) in zip(axes[0], panels, strict=True):
        for name in colours:
            points = [
                (case["rows"], case["providers"][name][figure])
                for case in results["cases"]
                if case["dtype"] == dtype and figure in case["providers"].get(name, {})
            ]
            if points:
                axis.plot(
                    *zip(*sorted(points), strict=True),
                    marker="o",
                    markersize=4,
                    color=colours[name],
                    linewidth=2.2 if name == "fastssl" else 1.2,
                    label=name,
                )
        if figure == "p50":
            floor = sorted(
                (case["rows"], case["floor_ms"])
                for case in results["cases"]
                if case["dtype"] == dtype and "floor_ms" in case
            )
            axis.plot(*zip(*floor, strict=True), ":", color="grey", label="floor: products alone")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("rows")
        axis.set_title(f"{results['bench']}, {dtype}: {title}", fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure_.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure_)


def write(path: Path) -> list[Path]:
    """The Markdown and, where matplotlib is at hand, the plot beside a results file."""
    results = json.loads(path.read_text())
    text = f"# {results['title']}\n\n{markdown(results)}"
    if goals(results):
        text += "\n" + goals(results)
    made = [path.with_suffix(".md")]
    made[0].write_text(text)
    if "steps" in results:
        from bench.steps_report import plot as draw
    elif results.get("cases") and "task" not in results["cases"][0]:
        draw = plot
    else:  # of one size: a table says it
        return made
    try:
        draw(results, path.with_suffix(".png"))
        made.append(path.with_suffix(".png"))
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)
    return made


def ours() -> list[Path]:
    """The results that tables are made from here: codegen and launches write their own."""
    paths = sorted(RESULTS.glob("*.json"))
    return [path for path in paths if "title" in json.loads(path.read_text())]


def main(argv: list[str]) -> int:
    words = argparse.ArgumentParser(prog="python bench/report.py", description=__doc__)
    words.add_argument("--readme", action="store_true", help="also refresh README.md")
    words.add_argument("files", nargs="*", type=Path, help="default: all of bench/results")
    options = words.parse_args(argv)
    for path in options.files or ours():
        for made in write(path):
            print(f"written: {made.name}")
    readme = ROOT / "README.md"
    if options.readme and readme.exists():
        readme.write_text(refreshed(readme.read_text()))
        print("refreshed: README.md")
    return 0


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT)]  # in place of this folder, whose files are no top-level modules
    sys.exit(main(sys.argv[1:]))
