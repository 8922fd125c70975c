"""Options of `eval` and `distill` that say how a classifier is trained."""

from __future__ import annotations

import argparse
import dataclasses

from fastssl.evaluation import Fitting


def add_options(parser: argparse.ArgumentParser, title: str, fitting: Fitting) -> None:
    """``--head-layers``, how much of an image is seen, and an option for each of a Fitting's
    settings with its value here."""
    parser.add_argument(
        "--head-layers",
        type=int,
        default=0,
        metavar="N",
        help="the projection head's first N layers belong to the encoder; SimCLR v2: 1",
    )
    parser.add_argument(
        "--eval-crop",
        type=float,
        metavar="SHARE",
        help="photographs are judged by the square in their middle, of this share of the shorter "
        "side; default: as the run, 0.875",
    )
    parser.add_argument(
        "--crop-area",
        type=float,
        metavar="SHARE",
        help="the least area of a crop to learn from with labels; default: as in pre-training",
    )
    group = parser.add_argument_group(title)
    for name, value in dataclasses.asdict(fitting).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            group.add_argument(flag, action="store_true", help="keep its statistics")
        else:
            group.add_argument(flag, type=type(value), default=value, help=f"default: {value}")


def fitting_of(options: argparse.Namespace) -> Fitting:
    """The settings among parsed options.

    Raises:
        UserError: one of them is out of range.
    """
    names = [field.name for field in dataclasses.fields(Fitting)]
    return Fitting(**{name: getattr(options, name) for name in names})


def percent(text: str) -> float:
    """A share from "10" or "10%"."""
    return float(text.strip().removesuffix("%")) / 100


def shares(text: str) -> list[float]:
    """Shares from "1,10"."""
    return [percent(part) for part in text.split(",")]
