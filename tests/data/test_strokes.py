"""What the views of digits add: bending, weight of the stroke, softness, noise."""

import pytest
import torch

from fastssl.data import Recipe, build_recipe

PLAIN = {"mean": 0.0, "std": 1.0, "views": 1}


def pictures(n=6):
    torch.manual_seed(0)
    return torch.randint(0, 256, (n, 1, 16, 16), dtype=torch.uint8), torch.arange(n)


@pytest.mark.parametrize(
    "change", [{"bend": 0.3}, {"gamma": 0.7}, {"soften": 0.8}, {"noise": 0.2}, {}]
)
def test_a_view_depends_on_seed_and_index_alone(change):
    images, indices = pictures()
    recipe = Recipe(**PLAIN, **change) if change else build_recipe("digits")
    whole = recipe(images, indices, 7)[0]
    part = recipe(images[2:4], indices[2:4], 7)[0]
    torch.testing.assert_close(whole[2:4], part)
    assert torch.equal(whole, recipe(images, indices, 7)[0])
    assert not torch.equal(whole, recipe(images, indices, 8)[0])


def test_each_keeps_its_promise():
    images, indices = pictures(64)
    x = images.float() / 255
    view = Recipe(**PLAIN, gamma=0.5)(images, indices, 0)[0]
    exponent = (view.clamp(min=1e-3).log() / x.clamp(min=1e-3).log())[:, 0, 8, 8]
    inside = (x[:, 0, 8, 8] > 0.05) & (x[:, 0, 8, 8] < 0.95)
    assert exponent[inside].log().abs().max() <= 0.5 + 1e-3

    rest = Recipe(**PLAIN, noise=0.2)(images, indices, 0)[0] - x
    assert rest.flatten(1).std(dim=1).max() < 0.22
    assert rest.flatten(1).std(dim=1).min() < 0.05
    assert rest.mean().abs() < 0.01

    flat = torch.full((4, 1, 16, 16), 100, dtype=torch.uint8)
    soft = Recipe(**PLAIN, soften=0.9)(flat, torch.arange(4), 0)[0]
    torch.testing.assert_close(soft, flat.float() / 255)  # nothing to soften, no dark border


def test_bending_moves_pixels_by_no_more_than_asked():
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(8, 1, 64, 64)
    view = Recipe(**PLAIN, bend=0.1)(ramp, torch.arange(8), 0)[0]
    moved = (view - ramp.float() / 255)[:, :, 16:48, 16:48]  # inside, where nothing is cut off
    assert moved.abs().max() > 0.01
    # half the side is half the ramp; a bicubic field can pass its nodes by a little
    assert moved.abs().max() < 0.1 / 2 * 1.5
