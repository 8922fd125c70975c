"""Random views: functions of (seed, sample), right in shape, range and meaning."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastssl.data import RECIPES, Recipe, build_recipe, load_data
from fastssl.errors import UserError


def images(n=12, channels=3, side=32):
    return torch.randint(256, (n, channels, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_repeatability(name, channels):
    recipe = build_recipe(name, 32)
    x, indices = images(channels=channels), torch.arange(12)
    views = recipe(x, indices, 5)
    assert len(views) == recipe.views
    assert views[0].shape == x.shape
    for view in views:
        assert view.shape[:2] == x.shape[:2]
        assert view.dtype == torch.float32
        assert view.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(views, recipe(x, indices, 5), strict=True))
    assert not torch.allclose(views[0], views[1])
    assert not torch.allclose(views[0], recipe(x, indices, 6)[0])


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_does_not_depend_on_its_batch(name):
    x, indices = images(), torch.arange(12)
    whole = build_recipe(name, 32)(x, indices, 5)
    part = build_recipe(name, 32)(x[3:7], indices[3:7], 5)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[3:7], b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_global_generator_is_left_alone(name):
    x = images()
    state = torch.get_rng_state()
    build_recipe(name, 32)(x, torch.arange(12), 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_recipe_of_nothing_leaves_images_alone():
    x = images()
    for view in Recipe()(x, torch.arange(12), 0):
        torch.testing.assert_close(view, (x / 255 - 0.5) / 0.5, atol=1e-4, rtol=0)


def test_a_sure_flip_mirrors():
    x = images()
    view = Recipe(flip=1.0, views=1)(x, torch.arange(12), 0)[0]
    torch.testing.assert_close(view, Recipe().normalize(x / 255).flip(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_as_the_encoder_takes_them(channels):
    """Each channel by its own mean and deviation, and back; gently, they are only cropped."""
    recipe = build_recipe("small", 32)
    x = images(channels=channels) / 255
    normal = recipe.normalize(x)
    torch.testing.assert_close(recipe.denormalize(normal), x)
    mean, std = recipe.recipe.mean[:channels], recipe.recipe.std[:channels]
    for c, (m, s) in enumerate(zip(mean, std, strict=True)):
        torch.testing.assert_close(normal[:, c], (x[:, c] - m) / s)
    black = torch.zeros(4, channels, 40, 40, dtype=torch.uint8)
    (view,) = build_recipe("byol", 32).gentle()(black, torch.arange(4), 3)
    torch.testing.assert_close(view, recipe.normalize(torch.zeros(4, channels, 32, 32)))
    gentle = build_recipe("dino", 32).gentle(0.08).recipe.views
    assert [(view.scale, view.flip, view.jitter) for view in gentle] == [((0.08, 1.0), 0.5, 0.0)]
    assert build_recipe("dino", 32).gentle().recipe.views[0].scale == (0.4, 1.0)
    assert build_recipe("digits").gentle(0.5).scale == (0.5, 1.4)
    for area in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="the least area of a crop must lie in"):
            build_recipe("photo", 32).gentle(area)
    indices, pixels = torch.arange(12), images(channels=channels)
    one = build_recipe("photo", 32)(pixels, indices, 1)[0]
    other = build_recipe("photo", 32, channels_last=True)(pixels, indices, 1)[0]
    assert torch.equal(one, other)
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_a_crop_is_a_part_of_the_image():
    """Of a horizontal ramp: within its range, still a ramp, as steep as the crop is narrow."""
    ramp = torch.arange(64).mul(4).to(torch.uint8).expand(200, 1, 64, 64).contiguous()
    recipe = Recipe(scale=(0.25, 0.25), views=1, mean=0.0, std=1.0)
    view = recipe(ramp, torch.arange(200), 0)[0]
    steps = (view[:, 0, :, 1:] - view[:, 0, :, :-1])[:, :, 1:-1]  # its first and last are halves
    torch.testing.assert_close(steps, torch.full_like(steps, 4 / 255 / 2), atol=1e-3, rtol=0)
    starts = view[:, 0, 0, 0] * 255 / 4
    assert 0 <= starts.min() < 2
    assert 30 < starts.max() <= 33


def test_erasure_sets_a_square_to_black():
    x = torch.full((50, 1, 20, 20), 255, dtype=torch.uint8)
    recipe = Recipe(erase=1.0, erase_side=(0.3, 0.3), views=1, mean=0.0, std=1.0)
    erased = (recipe(x, torch.arange(50), 0)[0] < 0.5).sum((1, 2, 3))
    assert set(erased.tolist()) <= {25, 30, 36, 42, 49}


def test_probabilities_are_kept():
    x = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    x[:, :, :, 0] = 255
    view = Recipe(flip=0.3, views=1)(x, torch.arange(2000), 1)[0]
    flipped = (view[:, 0, 0, 0] < 0).float().mean().item()
    assert flipped == pytest.approx(0.3, abs=0.03)


def test_views_of_a_digit_keep_most_of_it():
    data = load_data("digits")
    x = data.train[torch.arange(200)]
    recipe = dataclasses.replace(build_recipe(data.recipe), mean=0.0, std=1.0)
    ink = [
        view.sum((1, 2, 3)) / (x / 255).sum((1, 2, 3)) for view in recipe(x, torch.arange(200), 0)
    ]
    assert torch.cat(ink).median() > 0.5


def test_an_unknown_recipe():
    with pytest.raises(UserError, match="no recipe of views 'x'; there are: digits, small, photo"):
        build_recipe("x")
