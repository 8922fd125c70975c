"""``fastssl distill RUN_DIR``: a run's encoder learns from some labels, and teaches a student."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastssl.cli.fitting import add_options, fitting_of, percent
from fastssl.errors import UserError
from fastssl.evaluation import DISTILLING
from fastssl.training.distilling import distill_run, save_student
from fastssl.training.ranks import choose_device
from fastssl.training.run import load_run

REPORT = "distillation.json"


def main(argv: list[str]) -> int:
    """Run ``fastssl distill``; the exit status: 0, 2 for what the user can put right, or 130."""
    options = _parser().parse_args(argv)
    try:
        fitting = fitting_of(options)
        run = load_run(
            options.run_dir,
            device=options.device,
            head_layers=options.head_layers,
            eval_crop=options.eval_crop,
        )
        student, report = distill_run(
            run,
            choose_device(options.device),
            encoder=options.encoder,
            share=options.label_share,
            temperature=options.temperature,
            crop_area=options.crop_area,
            fitting=fitting,
        )
        written = options.run_dir / REPORT
        try:
            written.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            path = save_student(student, options.encoder, run, options.run_dir)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
    except UserError as error:
        print(f"fastssl distill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastssl distill: interrupted", file=sys.stderr)
        return 130
    table = Table(title=f"{100 * options.label_share:g}% of the labels", title_justify="left")
    for column in ("", "test images, %", "parameters"):
        table.add_column(column, justify="right" if column else "left")
    for name, of in report["results"].items():
        table.add_row(name, f"{100 * of['accuracy']:.1f}", f"{of['parameters']:,}")
    Console().print(table)
    print("written:", written, path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastssl distill",
        description="Fine-tune the encoder of a run on a share of the labels; then a student "
        "learns its answers on all training images, without their labels. Writes student.pt, "
        "which fastssl.training.load_student reads, and distillation.json.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what `train` wrote")
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="the student's, with fresh weights: small-cnn, resnet18, timm:NAME, …; default: the "
        "run's own, as it was pre-trained (self-distillation)",
    )
    parser.add_argument(
        "--label-share",
        type=percent,
        default=0.1,
        metavar="PERCENT",
        help="of each class, for the teacher; default: 10",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of teacher and student; default: 1"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    add_options(parser, "training of the student", DISTILLING)
    return parser
