"""Recipes: what is drawn depends on (seed, sample, view)."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from fastssl import augment
from fastssl.augment import Packed, View
from fastssl.reference.augment_parameters import _exp
from fastssl.reference.philox import philox

RECIPES = (
    *(
        "simclr",
        "moco_v1",
        "moco_v2",
        "moco_v3",
        "byol",
        "barlow_twins",
        "simsiam",
        "mae",
        "digits",
    ),
    *("swav", "dino", "dinov2"),
)


def philox_by_hand(counter, key):
    """Ten rounds in Python's whole numbers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_philox():
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # of the authors' own tests
    assert philox_by_hand((0,) * 4, (0, 0)) == known
    assert philox(0, torch.tensor([0]), 0, 4)[0].tolist() == known
    g = random.Random(0)
    for _ in range(20):
        seed, sample, view = g.getrandbits(64), g.getrandbits(63), g.getrandbits(32)
        words = philox(seed, torch.tensor([5, sample]), view, 11)[1].tolist()
        for group in range(3):
            counter = (group, view, sample % 2**32, sample >> 32)
            by_hand = philox_by_hand(counter, (seed % 2**32, seed >> 32))
            assert words[4 * group : 4 * group + 4] == by_hand[: len(words) - 4 * group]


def test_exp_by_arithmetic():
    x = torch.linspace(-700, 700, 10001, dtype=torch.float64)
    torch.testing.assert_close(_exp(x), x.exp(), rtol=4e-16 * 700, atol=0)
    torch.testing.assert_close(_exp(x / 700), (x / 700).exp(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_is_a_function_of_seed_sample_and_view(name):
    recipe = getattr(augment, name)(
        24, **({"small": 12} if name in ("swav", "dino", "dinov2") else {})
    )
    images = torch.randint(0, 256, (6, 3, 40, 30), dtype=torch.uint8)
    indices = torch.tensor([3, 1, 4, 10**12, 5, 9])
    views = recipe(images, indices, 2**64 - 1)
    assert [v.shape[2:] for v in views] == [view.shape for view in recipe.views]
    order = torch.tensor([4, 0, 3])
    packed = Packed.of([image.permute(1, 2, 0) for image in images[order]])
    for one, other in zip(views, recipe(packed, indices[order], 2**64 - 1), strict=True):
        assert torch.equal(one[order], other)
    assert not torch.equal(views[0], recipe(images, indices, 2)[0])
    parameters = recipe.parameters(images, indices, 2)
    for one, other in zip(
        recipe.apply(images, parameters), recipe(images, indices, 2), strict=True
    ):
        assert torch.equal(one, other)
    assert len({tuple(p.flatten().tolist()) for p in parameters}) == len(parameters)


def test_recipes_are_data():
    recipe = augment.simclr(32, strength=0.5, blur=0)
    assert recipe == eval(repr(recipe), {"Recipe": augment.Recipe, "View": View})
    assert recipe.views[0].brightness == 0.4
    assert repr(View(8, flip=0.5)) == "View(size=8, flip=0.5)"
    assert repr(augment.Recipe((View(),), std=(1.0,))) == "Recipe(views=(View(),), std=(1.0,))"
    assert augment.swav().views[2].shape == (96, 96)
    assert [view.blur for view in augment.dinov2().views[:2]] == [1.0, 0.1]
    assert [view.blur for view in augment.dinov2(blur_as_published=True).views[:2]] == [0.0, 0.9]
    assert View(224).blur_taps == 23
    assert View(1, blur=1).blur_taps == 1
    grey = augment.byol(16)(torch.zeros(2, 1, 20, 20, dtype=torch.uint8), torch.arange(2), 0)
    assert [tuple(v.shape) for v in grey] == [(2, 1, 16, 16)] * 2


def test_digits_keep_what_tells_them_apart():
    """No flips; grey as colours; softer or of other contrast, and black stays black."""
    recipe = augment.digits(16)
    view = recipe.views[0]
    assert (view.flip, view.flip_vertical, view.turn, view.grey) == (0, 0, 0, 0)
    assert view.blur_taps == 5
    assert augment.digits().views[0].blur_taps == 9
    assert augment.digits(1).views[0].blur_taps == 1
    black = torch.zeros(50, 1, 16, 16, dtype=torch.uint8)
    for made in recipe(black, torch.arange(50), 0):
        assert torch.allclose(made, torch.full_like(made, -0.3 / 0.35))
    strokes = black.clone()
    strokes[:, :, 4:12, 7:9] = 200
    made = recipe(strokes, torch.arange(50), 0)[0]
    in_colours = recipe(strokes.expand(-1, 3, -1, -1), torch.arange(50), 0)[0]
    torch.testing.assert_close(in_colours, made.expand(-1, 3, -1, -1), rtol=0, atol=2e-4)


def test_passes_through_compile():
    recipe, images = augment.dino(12, 6, crops=2), torch.zeros(3, 3, 9, 8, dtype=torch.uint8)
    images += torch.arange(8, dtype=torch.uint8) * 30
    compiled = torch.compile(lambda *given: recipe(*given), fullgraph=True, backend="aot_eager")
    for seed in (1, 2, 3, 2**64 - 1):
        whole = compiled(images, torch.arange(3), seed)
        for one, other in zip(whole, recipe(images, torch.arange(3), seed), strict=True):
            assert torch.equal(one, other)


def test_bad_recipes_are_named():
    images, indices = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2)
    view = View(8)
    for name, value in {
        "flip": 1.5, "grey": math.nan, "scale": (0.5, 0.1), "ratio": (0.0, 1.0), "brightness": -1,
        "hue": 0.6, "sigma": (0.0, 1.0), "taps": 4, "size": 0, "erase_scale": (0.1, math.nan),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=name):
            replace(view, **{name: value})
    with pytest.raises(ValueError, match="turn needs a square"):
        View((8, 9), turn=0.5)
    recipe = augment.Recipe((view,))
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            recipe(images, indices, seed)
    with pytest.raises(ValueError, match="indices"):
        recipe(images, indices[:1], 0)
    with pytest.raises(ValueError, match="each of the 1 views"):
        recipe.apply(images, [])
