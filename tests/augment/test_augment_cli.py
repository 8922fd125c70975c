"""fastssl augment: a picture of views, or an error that says what to put right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastssl.cli import main


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
    with Image.open(out) as picture:  # rows of the image and its eight views, three columns
        assert picture.height > 2 * picture.width
    first = out.read_bytes()
    main(["augment", *arguments, "--recipe", "swav"])
    assert out.read_bytes() == first
    main(["augment", *arguments, "--recipe", "swav", "--seed", "1"])
    assert out.read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--recipe", "x"], "no recipe of views 'x'; there are: digits, small, photo"),
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
