"""``fastssl augment``: what a recipe of views or a pretext task does, as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fastssl.cli.pretext import TASKS
from fastssl.data import RECIPES, ImageStore, Reading, build_recipe, load_data, reader
from fastssl.errors import UserError, choose


def main(argv: list[str]) -> int:
    """Run ``fastssl augment``; the exit status: 0, 2 for what the user can put right, or 130."""
    options = _parser().parse_args(argv)
    try:
        draw(options)
    except UserError as error:
        print(f"fastssl augment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastssl augment: interrupted", file=sys.stderr)
        return 130
    print("written:", options.out)
    return 0


def draw(options: argparse.Namespace) -> None:
    """Write the picture: images in the first row; below each one its views, or what is made of it.

    Raises:
        UserError: there is no such data or recipe, a number is out of range, or the file cannot be
            written.
    """
    from fastssl.training.pictures import image_grid, save

    for name, least in (("images", 1), ("image_size", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} must be at least {least}, not {value}")
    reading = Reading(keep="files")  # for a few images
    data = load_data(options.data, image_size=options.image_size, reading=reading)
    name = options.recipe or data.recipe
    if name not in (*RECIPES, *TASKS):
        raise choose("recipe of views", name, [*RECIPES, *TASKS])
    count = min(options.images, len(data.train))
    indices = torch.arange(count) * len(data.train) // count  # of every class, where they stand so
    train = data.train
    images = train.middles(indices) if isinstance(train, ImageStore) else train[indices]
    rows = {"image": images.float() / 255}
    if name in TASKS:
        try:
            rows |= TASKS[name](images, indices, options.seed)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
    else:
        recipe = build_recipe(name, train.shape[-1])
        views = recipe(reader(train, recipe)(indices), indices, options.seed)
        rows |= {f"view {i + 1}": recipe.denormalize(view) for i, view in enumerate(views)}
    figure = image_grid(list(rows.values()), list(rows))
    try:
        save(figure, options.out)
    except OSError as error:
        raise UserError(f"{options.out}: cannot be written: {error.strerror}") from error
    except ValueError as error:  # a suffix that stands for no format
        raise UserError(f"{options.out}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastssl augment",
        description="Draw some training images and, below each, views that a recipe makes "
        "of it, or what a pretext task does.",
    )
    parser.add_argument(
        "--data", default="digits", help="digits, folder:PATH, cifar10:PATH, …; default: digits"
    )
    parser.add_argument(
        "--recipe",
        help=f"of {', '.join(RECIPES)}; or a task, of {', '.join(TASKS)}; default: what suits the "
        "data",
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture: PNG, PDF, SVG, …")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="how many; default: 8")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="a side; default: the data's own"
    )
    parser.add_argument("--seed", type=int, default=0, help="another gives other views; default: 0")
    return parser
