"""``fastssl eval RUN_DIR``: what a run's encoder is worth, by the tasks one chooses."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from fastssl.cli.fitting import add_options, fitting_of, shares
from fastssl.data import load_data
from fastssl.errors import UserError
from fastssl.evaluation import QUICK_TASKS, TASKS, WITHOUT_LABELS, Fitting, to_table, write_report
from fastssl.training.ranks import choose_device
from fastssl.training.run import Run, judge, load_run, reading_of


def main(argv: list[str]) -> int:
    """Run ``fastssl eval``; the exit status: 0, 2 for what the user can put right, or 130."""
    options = _parser().parse_args(argv)
    try:
        fitting = fitting_of(options)
        run = load_run(
            options.run_dir,
            device=options.device,
            head_layers=options.head_layers,
            eval_crop=options.eval_crop,
        )
        if options.data:
            run = on_other_data(run, options.data)
        report = judge(
            run,
            choose_device(options.device),
            tasks=options.tasks,
            label_shares=options.label_shares,
            crop_area=options.crop_area,
            fitting=fitting,
        )
        try:
            written = write_report(report, options.out or options.run_dir)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
    except UserError as error:
        print(f"fastssl eval: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastssl eval: interrupted", file=sys.stderr)
        return 130
    Console().print(to_table(report))
    print("written:", *written)
    return 0


def on_other_data(run: Run, name: str) -> Run:
    """The same encoders, to be judged on other images, brought to the size they were trained at.

    Raises:
        UserError: there is no such data, or its images have another number of channels.
    """
    channels, side, _ = run.data.train.shape
    reading = dataclasses.replace(reading_of(run.config), cache=None)
    data = load_data(name, image_size=side, reading=reading)
    if data.train.shape[0] != channels:
        raise UserError(f"{name} has {data.train.shape[0]} channels, the encoder takes {channels}")
    return dataclasses.replace(
        run,
        config=run.config.model_copy(update={"data": name}),
        data=data.framed(run.config.eval_crop),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastssl eval",
        description="Judge the encoder of a run beside an untrained one and raw pixels: kNN, "
        "linear probe, 1, 5, 10 and 50 labels a class, k-means, RankMe; if asked for, fine-tuning "
        "with all labels or a few. Labels to learn from come from the training split only. Writes "
        "evaluation.json and evaluation.md.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what `train` wrote")
    parser.add_argument("--data", help="other data than the run's: digits, folder:PATH, …")
    parser.add_argument(
        "--tasks",
        type=lambda text: text.split(","),
        metavar="TASK,…",
        help=f"of {', '.join(TASKS)}; default: {', '.join(QUICK_TASKS)}, or, without labels, "
        f"{', '.join(WITHOUT_LABELS)}",
    )
    parser.add_argument(
        "--label-shares",
        type=shares,
        default=[0.01, 0.1],
        metavar="PERCENT,…",
        help="for semi-supervised; default: 1,10",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--out", type=Path, help="a directory for the report; default: RUN_DIR")
    add_options(parser, "fine-tuning", Fitting())
    return parser
