"""fastssl augment: a picture of views, or an error that says what to put right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.cli.pretext import TASKS


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0)
    for i in range(3):
        pixels = noise.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_a_picture(folder, capsys):
    out = folder.parent / "grid.png"
    arguments = ["--data", f"folder:{folder}", "--image-size", "24", "--out", str(out)]
    assert main(["augment", *arguments, "--recipe", "swav"]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    with Image.open(out) as picture:  # the image, two views of its size, six small ones; 3 columns
        assert 1.2 * picture.width < picture.height < 2 * picture.width
    first = out.read_bytes()
    main(["augment", *arguments, "--recipe", "swav"])
    assert out.read_bytes() == first
    main(["augment", *arguments, "--recipe", "swav", "--seed", "1"])
    assert out.read_bytes() != first


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_of_a_task(task, folder, capsys):
    out = folder.parent / "task.png"
    arguments = ["--data", f"folder:{folder}", "--recipe", task, "--out", str(out)]
    assert main(["augment", *arguments, "--image-size", "28", "--images", "3"]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    with Image.open(out) as picture:
        assert min(picture.size) > 100


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("side", [1, 2, 3, 16, 37])
def test_rows_of_a_task_are_no_larger_than_its_images(task, side):
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    rows = TASKS[task](images, torch.arange(2), 0)
    for x in rows.values():
        assert x.shape[:2] == (2, 3)
        assert max(x.shape[2:]) <= max(side, 3)
        assert x.dtype == torch.float32
        assert -1e-5 <= x.min() <= x.max() <= 1 + 1e-5


@pytest.mark.parametrize("side", [85, 255])
def test_a_solved_puzzle_is_the_image(side):
    """But for the jitter: of a slope of one level in so many pixels, almost nothing."""
    slope = (torch.arange(side) * 255 // side).byte()
    images = torch.stack(
        [slope.expand(side, side), slope.expand(side, side).T, slope.expand(side, side)]
    )
    rows = TASKS["jigsaw"](images[None], torch.arange(1), 3)
    length = rows["solved"].shape[2]
    image = images[None, :, :length, :length] / 255
    jitter = 1.5 * (side // 3 - side // 3 * 64 // 85) / side
    assert (rows["solved"] - image).masked_select(rows["solved"].amin(1) < 1).abs().max() < jitter
    assert (rows["puzzle"] - image).abs().max() > 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "x"], "no recipe of views 'x'; there are: digits, small, photo"),
        (["--recipe", "colorization"], "colorization: images must have 3 channels"),
        (["--recipe", "counting", "--images", "1"], "counting: images must be two or more"),
        (["--data", "folder:/none"], "there is no folder /none"),
        (["--images", "0"], "--images must be at least 1, not 0"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--out", "/none/grid.png"], "/none/grid.png: cannot be written: No such file"),
        (["--out", "grid.nothing"], "grid.nothing: "),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_errors(arguments, text, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert main(["augment", "--images", "2", "--out", "grid.png", *arguments]) == 2
    assert text in capsys.readouterr().err
