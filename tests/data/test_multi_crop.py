"""Views by several recipes: of other sizes and scales, and treated unequally."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastssl.data import MultiCrop, Recipe, build_recipe, fitted
from fastssl.errors import UserError
from fastssl.training.pictures import image_grid

PLAIN = Recipe(views=1, mean=0.0, std=1.0)


def images(n=12, side=56):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("byol", [56] * 2),
        ("swav", [56] * 2 + [24] * 6),
        ("dino", [56] * 2 + [24] * 8),
        ("digits-crops", [56] * 2 + [28] * 4),
    ],
)
def test_sizes(name, sides):
    recipe = build_recipe(name, 56)
    views = recipe(images(), torch.arange(12), 5)
    assert [tuple(v.shape) for v in views] == [(12, 3, side, side) for side in sides]
    assert recipe.views == len(sides)
    for i, view in enumerate(views):
        assert view.isfinite().all()
        assert not any(torch.equal(view, other) for other in views[:i])


def test_a_photographs_small_crops_have_96_pixels():
    views = build_recipe("swav")(images(1, side=224), torch.arange(1), 0)
    assert [v.shape[-1] for v in views] == [224] * 2 + [96] * 6


def test_the_first_views_are_those_of_the_first_recipe_alone():
    large, small = Recipe(scale=(0.2, 1.0), flip=0.5), replace(PLAIN, size=0.5, mean=0.5, std=0.5)
    x, indices = images(), torch.arange(12)
    views = MultiCrop((large, small))(x, indices, 7)
    assert all(map(torch.equal, views, large(x, indices, 7)))
    halved = torch.nn.functional.avg_pool2d(large.normalize(x / 255), 2)  # between pixel centres
    torch.testing.assert_close(views[2], halved, atol=1e-4, rtol=0)


def test_a_small_crop_shows_its_share_of_the_image():
    """Of a ramp: a crop of half the side on half the pixels is as steep as the image."""
    ramp = torch.arange(64).mul(4).to(torch.uint8).expand(200, 1, 64, 64).contiguous()
    (view,) = replace(PLAIN, scale=(0.25, 0.25), size=0.5)(ramp, torch.arange(200), 0)
    steps = view[:, 0, :, 1:] - view[:, 0, :, :-1]
    torch.testing.assert_close(steps, torch.full_like(steps, 4 / 255), atol=1e-4, rtol=0)
    starts = view[:, 0, 0, 0] * 255 / 4
    assert 0 <= starts.min() < 2
    assert 30 < starts.max() <= 32


def test_scales_of_dino_for_resnets():
    scales = [view.scale for view in build_recipe("dino-resnet").recipe.views]
    assert scales == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 8


@pytest.mark.parametrize("name", ["byol", "dino"])
def test_the_two_large_views_are_treated_unequally(name):
    first, second = build_recipe(name).recipe.views[:2]
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)
    assert replace(first, blur=0.1, solarize=0.2) == second


def test_how_many_views_a_method_takes():
    swav, byol = build_recipe("swav"), build_recipe("byol")
    assert fitted(Recipe(), 3).views == 3
    photo = fitted(build_recipe("photo", 20), 3)
    assert photo.views == len(photo(images(), torch.arange(12), 0)) == 3
    assert fitted(swav, 2, more=True) is swav
    assert fitted(byol, 2) is byol
    with pytest.raises(UserError, match="these views are 8 of an image, the method takes 2"):
        fitted(swav, 2)
    with pytest.raises(UserError, match="these views are 2 of an image, the method takes at least"):
        fitted(byol, 3, more=True)


def test_a_picture_of_views_of_several_sizes():
    rows = build_recipe("digits-crops")(images(3), torch.arange(3), 0)
    figure = image_grid(rows, [str(i) for i in range(len(rows))])
    assert figure.axes[0].images[0].get_array().shape == (2 * 58 + 4 * 30, 3 * 58, 3)
