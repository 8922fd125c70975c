"""A run's pictures: the views in them are those of the recipe that it was trained with."""

from __future__ import annotations

import pytest
import torch

from fastssl.data import Split, TensorImages, build_recipe
from fastssl.nn.encoders import build_encoder
from fastssl.training import pictures


@pytest.mark.parametrize("name", ["swav", "moco-v1", "digits"])
def test_views_are_the_recipes(name, tmp_path, monkeypatch):
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    recipe, drawn = build_recipe(name, 24), []
    real = pictures.image_grid
    monkeypatch.setattr(
        pictures, "image_grid", lambda rows, names: drawn.append((rows, names)) or real(rows, names)
    )
    data = Split(TensorImages(images), None, "photo")  # which other views would suit
    metrics = [{"step": 1, "loss": 1.0}]
    encoder, device = build_encoder("small-cnn", 3), torch.device("cpu")
    pictures.draw_pictures(tmp_path, metrics, encoder, data, recipe, device)
    ((rows, names),) = drawn
    views = recipe(images, torch.arange(4), 0)
    assert names == ["image", *(f"view {i + 1}" for i in range(recipe.views))]
    assert torch.equal(rows[0], images / 255)
    for row, view in zip(rows[1:], views, strict=True):
        torch.testing.assert_close(recipe.normalize(row), view)
    assert (tmp_path / "views.png").stat().st_size > 0
