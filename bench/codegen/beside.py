"""Predictions beside what ``make gpu`` measured: ``python -m bench.codegen.beside FOLDER``.

Reads the ``*-cuda.json`` of the folder, compiles what each case would launch for the chip that they
were measured on with the Triton that is here, and writes codegen-cuda.json and its table. What a
call costs beside our kernels (the host, torch's own ops) is in the measurement alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from bench import report, run
from bench.codegen import catalogue, predict
from bench.codegen.chip import CHIPS, Chip
from bench.codegen.compile import Launch
from bench.losses.bench_info_nce_queue import QUERIES

Measured = dict[str, Any]  # a case of a results file
RESNET50 = 25_600_000  # parameters of bench_ema_update's network, about


def similarity(chip: Chip, case: Measured, **options: Any) -> list[Launch]:
    return catalogue.similarity(
        chip, **{"m": case["rows"], "d": case["dim"], "dtype": dtype(case)} | options
    )


def dtype(case: Measured) -> torch.dtype:
    return getattr(torch, case["dtype"])


# By benchmark, the launches of a case.
LAUNCHES: dict[str, Callable[[Chip, Measured], list[Launch]]] = {
    "nt_xent": similarity,
    "info_nce_queue": lambda chip, c: similarity(
        chip, c, m=min(QUERIES, c["rows"]), k=c["rows"], mean=True
    ),
    "clip": lambda chip, c: similarity(chip, c, k=c["rows"], columns=True, learned=True),
    "siglip": lambda chip, c: catalogue.softplus(chip, c["rows"], c["rows"], c["dim"], dtype(c)),
    "sinkhorn": lambda chip, c: catalogue.sinkhorn_plan(chip, c["rows"], 3000),
    "sinkhorn_65536": lambda chip, c: catalogue.sinkhorn_plan(chip, c["rows"], 65536),
    "dino": lambda chip, c: catalogue.prototypes(chip, c["rows"], 65536, dtype=dtype(c)),
    "ema_update": lambda chip, c: catalogue.ema(chip, RESNET50),
}


def chip_of(machine: dict[str, Any]) -> Chip | None:
    """The one that the results' GPU is; an H200 where there was none, in the rehearsal."""
    gpu = machine.get("gpu")
    if gpu is None:
        return CHIPS["H200"]
    return next((chip for name, chip in CHIPS.items() if name in gpu), None)


def seconds(name: str, chip: Chip, case: Measured) -> float:
    if name == "ema_update":  # its kernel knows tensors by addresses: all bytes, once
        return 12.0 * RESNET50 / (1e12 * chip.dram) + 1e-6 * chip.launch
    return predict.seconds(LAUNCHES[name](chip, case), chip)


def compare(folder: Path, most: int | None) -> dict[str, Any]:
    """A row for each measured case that can be predicted, ``most`` of them at most."""
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    chip = None
    for name in LAUNCHES:
        path = folder / f"{name}-cuda.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text())
        machine, chip = results["machine"], chip_of(results["machine"])
        if chip is None:
            break
        for case in results["cases"]:
            ours = case["providers"].get("fastssl", {})
            measured = ours.get("graph_ms", ours.get("p50"))
            if measured is None or len(rows) == most:
                continue
            row = {key: case[key] for key in ("rows", "dim", "dtype")} | {"bench": name}
            row |= {"measured_ms": measured, "in_a_graph": "graph_ms" in ours}
            try:
                row["predicted_ms"] = 1e3 * seconds(name, chip, case)
                row["ratio"] = measured / row["predicted_ms"]
            except Exception as error:  # of one compilation
                row["failed"] = run.first_line(error)
            rows.append(row)
            print(line(row), flush=True)
    return {
        "machine": machine, "chip": chip and chip.name, "triton": triton.__version__, "rows": rows,
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    where = f"{row['bench']} M={row['rows']} D={row['dim']} {row['dtype']}"
    if "failed" in row:
        return f"{where}: not predicted – {row['failed']}"
    return f"{where}: predicted {row['predicted_ms']:.4g} ms, measured {row['measured_ms']:.4g}"


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    if found["chip"] is None:
        return f"No rates are known of {found['machine'].get('gpu', 'a chip: nothing measured')}.\n"
    gpu = found["machine"].get("gpu", "none: a rehearsal, whose times mean nothing")
    rows = [
        [
            f"{r['bench']}, {r['rows']:,} × {r['dim']}, {r['dtype']}",
            f"{r['predicted_ms']:.4g}" if "failed" not in r else r["failed"],
            f"{r['measured_ms']:.4g}" + " in a graph" * r["in_a_graph"],
            f"{r['ratio']:.2f}" if "failed" not in r else "",
        ]
        for r in found["rows"]
    ]
    return report.markdown_table(["case", "predicted ms", "measured ms", "ratio"], rows) + (
        f"\nPredicted for an {found['chip']} from the machine code of Triton {found['triton']}; "
        f"measured on: {gpu}. Commit {found['machine'].get('commit')}. Made by `make gpu`.\n"
    )


def main(argv: list[str]) -> int:
    words = argparse.ArgumentParser(prog="python -m bench.codegen.beside", description=__doc__)
    words.add_argument("folder", type=Path)
    words.add_argument("--most", type=int, help="cases at most")
    options = words.parse_args(argv)
    found = compare(options.folder, options.most)
    run.save(found, options.folder / "codegen-cuda.json")
    text = f"# Predicted and measured\n\n{table(found)}"
    (options.folder / "codegen-cuda.md").write_text(text)
    return int(any("failed" in row for row in found["rows"]))


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
