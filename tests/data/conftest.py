"""Image files of several sizes, kinds and orientations."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.stored import N


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    for i in range(N):
        height, width = rng.integers(9, 60, 2)
        pixels = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        name = f"{i:02}.{('jpg', 'png')[i % 2]}"
        pixels.resize((int(width), int(height))).save(folder / name, exif=exif)
    return folder


@pytest.fixture
def files(originals, tmp_path):
    """Copies that a test may spoil."""
    shutil.copytree(originals, tmp_path / "files")
    return sorted((tmp_path / "files").iterdir())
