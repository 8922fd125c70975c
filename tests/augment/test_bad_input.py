"""What is wrong with an argument is said by its name, before any backend is asked; and what is only
odd, such as samples below zero, gives the same on all."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import fastssl
from fastssl.augment import Augment, Collate, Packed, Recipe, Rotation, View, simclr
from fastssl.ops import augment

NAN, INF = math.nan, math.inf
IMAGES, INDICES = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8), torch.arange(2)
RECIPE = simclr(16)
ROWS = RECIPE.parameters(IMAGES, INDICES, 0)
DATA, OFFSETS = torch.zeros(486, dtype=torch.uint8), torch.tensor([0, 243])
SIZES = torch.tensor([[9, 9], [9, 9]])
BOTH = pytest.mark.parametrize("backend", ["reference", "native"])

NUMBERS = ("flip", "flip_vertical", "turn", "jitter", "grey", "blur", "solarize", "erase")
RANGES = ("scale", "ratio", "sigma", "erase_scale", "erase_ratio", "brightness", "contrast")
RANGES += ("saturation", "hue")


@pytest.mark.parametrize("name", NUMBERS)
def test_probabilities(name):
    for value in (NAN, INF, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"^{name} must be a probability, in \[0, 1\], not"):
            View(16, **{name: value})
    for value in ("x", None, (0.5,), [0.1, 0.2]):
        with pytest.raises(TypeError, match=f"^{name} must be a number, not"):
            View(16, **{name: value})


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name):
    for value in ((NAN, 0.4), (0.3, NAN), (0.4, 0.3), (-1.0, 0.3), (0.3, INF), (0.3, 2e6)):
        with pytest.raises(ValueError, match=rf"^{name} must be a range within [\[(].*\], not"):
            View(16, **{name: value})
    for value in ((0.1,), (0.1, 0.2, 0.3), "ab", (0.1, None), np.ones(2)):
        with pytest.raises(TypeError, match=f"^{name} must be a range of two numbers, not"):
            View(16, **{name: value})
    if name != "ratio":
        with pytest.raises(TypeError, match=name):
            View(16, **{name: None})
    assert View(16, **{name: [0.2, 0.3]}) == View(16, **{name: (0.2, 0.3)})
    hash(View(16, **{name: [0.2, 0.3]}))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_strengths(name):
    for value in (NAN, -0.1):
        with pytest.raises(ValueError, match=f"^{name} must not be negative, not"):
            View(16, **{name: value})
    with pytest.raises(ValueError, match=name):
        View(16, **{name: INF})


def test_sizes_taps_and_threshold():
    for size in (0, -1, 1.5, (3,), (3, 4, 5), "a", None, (0, 4), (4, 2.0)):
        with pytest.raises(ValueError, match=r"^size must be one or two positive whole numbers"):
            View(size)
    assert View([16, np.int64(8)]).shape == (16, 8)
    assert type(View(16, taps=np.int64(5)).blur_taps) is int
    assert View(np.int32(4)) == View(4)
    for taps in (0, 2, -3, 1.5, NAN, "x"):
        with pytest.raises(ValueError, match=r"^taps must be odd, whole and positive, not"):
            View(16, taps=taps)
    with pytest.raises(ValueError, match=r"^threshold must not be negative"):
        View(16, threshold=NAN)
    with pytest.raises(TypeError, match=r"^threshold must be a number"):
        View(16, threshold="x")


@pytest.mark.parametrize("make", [lambda **x: Recipe((View(8),), **x), lambda **x: Rotation(**x)])
def test_moments(make):
    for name in ("mean", "std"):
        for value in ((NAN,), (INF,), (1.0, 2.0), ()):
            with pytest.raises(ValueError, match=f"^{name} must be one or three finite numbers"):
                make(**{name: value})
        for value in (1.0, None, "abc", (None,)):
            with pytest.raises(TypeError, match=f"{name}.* must be"):
                make(**{name: value})
    for value in ((0.0,), (1.0, 0.0, 1.0), (0,)):
        with pytest.raises(ValueError, match=r"^std must not be 0"):
            make(std=value)


def test_views():
    for views in (View(8), (3,), [None], 7):
        with pytest.raises(TypeError, match=r"^views must hold View by View, not"):
            Recipe(views)
    with pytest.raises(ValueError, match=r"^views must hold at least one"):
        Recipe(())
    assert Recipe([View(8)]) == Recipe((View(8),))


SHAPES = r"^images must have shape \[B, C, H, W\] or \[B, H, W, C\], C = 1 or 3, none zero, not \["
CALLS = {
    "float images": (IMAGES / 255, {}, TypeError, "^images must be a uint8 tensor or Packed, not"),
    "an array": (IMAGES.numpy(), {}, TypeError, "^images must be a uint8 tensor or Packed, not"),
    "nothing": (None, {}, TypeError, "^images must be a uint8 tensor or Packed, not NoneType"),
    "no images": (IMAGES[:0], {"indices": INDICES[:0]}, ValueError, SHAPES),
    "no rows": (IMAGES[:, :, :0], {}, ValueError, SHAPES),
    "one image": (IMAGES[0], {}, ValueError, SHAPES),
    "four channels": (IMAGES[:, [0, 1, 2, 0]], {}, ValueError, SHAPES),
    "a list of indices": (IMAGES, {"indices": [0, 1]}, ValueError, r"^indices must be int64 of"),
    "32 bits": (IMAGES, {"indices": INDICES.int()}, ValueError, r"^indices must be int64 of sha"),
    "too few": (IMAGES, {"indices": INDICES[:1]}, ValueError, r"of shape \[2\], not torch"),
    "a matrix": (IMAGES, {"indices": INDICES[None]}, ValueError, r"of shape \[2\], not torch"),
    "elsewhere": (IMAGES, {"indices": INDICES.to("meta")}, ValueError, "^indices must be on the"),
    "65 bits": (IMAGES, {"seed": 2**64}, ValueError, r"^seed must lie in \[0, 2\^64\), not 184"),
    "a negative seed": (IMAGES, {"seed": -1}, ValueError, r"^seed must lie in \[0, 2\^64\)"),
    "half a seed": (IMAGES, {"seed": 1.5}, TypeError, "^seed must be a whole number, not 1.5"),
    "no seed": (IMAGES, {"seed": None}, TypeError, "^seed must be a whole number, not None"),
    "a seed's tensor": (IMAGES, {"seed": INDICES[0]}, TypeError, "^seed must be a whole number"),
    "double": (IMAGES, {"dtype": torch.float64}, TypeError, "^dtype must be float32, bfloat16"),
    "32 bits of sizes": (Packed(DATA, OFFSETS, SIZES.int()), {}, ValueError, "both int64, not"),
    "32 bits of offsets": (Packed(DATA, OFFSETS.int(), SIZES), {}, ValueError, "both int64, not"),
    "too few sizes": (Packed(DATA, OFFSETS, SIZES[:1]), {}, ValueError, "both int64, not"),
    "wide offsets": (Packed(DATA, OFFSETS[:, None], SIZES), {}, ValueError, "both int64, not"),
    "sizes elsewhere": (Packed(DATA, OFFSETS, SIZES.to("meta")), {}, ValueError, "images.sizes mu"),
    "float data": (Packed(DATA.float(), OFFSETS, SIZES), {}, TypeError, "^images must be uint8"),
    "wide data": (Packed(DATA[None], OFFSETS, SIZES), {}, ValueError, r"^images.data must have sh"),
    "packed of four": (Packed(DATA, OFFSETS, SIZES, 4), {}, TypeError, "1 or 3 channels, not"),
    "packed of none": (Packed(DATA, OFFSETS[:0], SIZES[:0]), {"indices": INDICES[:0]}, ValueError,
                       "^images must hold at least one"),
    "without pixels": (Packed(DATA, OFFSETS, SIZES * 0), {}, ValueError, "^image 0 has no pixels"),
    "negative sizes": (Packed(DATA, OFFSETS, -SIZES), {}, ValueError, "^image 0 has no pixels"),
    "sizes that wrap": (Packed(DATA, OFFSETS, SIZES + 2**40), {}, ValueError, "than 2.24 pixels"),
    "beyond the data": (Packed(DATA, OFFSETS + 1, SIZES), {}, ValueError, "487 bytes, not 486"),
    "before the data": (Packed(DATA, OFFSETS - 1, SIZES), {}, ValueError, "not be negative, as -1"),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, backend):
    images, options, error, text = CALLS[name]
    given = {"indices": INDICES, "seed": 0, **options}
    with fastssl.use_backend(backend), pytest.raises(error, match=text):
        RECIPE(images, **given)


@BOTH
def test_supplied_parameters(backend):
    wrong = {
        "each of the 2 views, not 1": [ROWS[0]],
        r"parameters\[1\] must have a row for each of the 2 images, not": [ROWS[0], ROWS[1][:1]],
        r"parameters\[0\] must have a row": [rows.repeat(2, 1) for rows in ROWS],
        r"shape \[19\]": ROWS[0],
        r"shape \[R, 19\], not \[4, 7\]": [rows[:, :7] for rows in ROWS],
    }
    with fastssl.use_backend(backend):
        for text, parameters in wrong.items():
            with pytest.raises(ValueError, match=text):
                RECIPE.apply(IMAGES, parameters)
        with pytest.raises(TypeError, match="parameters must be a float32 tensor"):
            RECIPE.apply(IMAGES, [rows.double() for rows in ROWS])
        made = RECIPE.apply(IMAGES, torch.stack(ROWS))
        assert all(map(torch.equal, made, RECIPE.apply(IMAGES, ROWS)))


@BOTH
def test_the_op(backend):
    size = r"^size must be a height and a width, both positive, not"
    wrong = [
        ({"size": 16}, ValueError, size),
        ({"size": (16.0, 16.0)}, ValueError, size),
        ({"size": (0, 4)}, ValueError, size),
        ({"taps": 1.0}, ValueError, r"^taps must be odd and in \[1, 31\], not 1.0"),
        ({"std": (NAN,)}, ValueError, "^std must be 3 finite numbers"),
        ({"std": (1, 0, 1)}, ValueError, "^std must be 3 finite numbers"),
        ({"mean": 0.5}, TypeError, "^mean must be 3 numbers, not 0.5"),
        ({"mean": "abc"}, TypeError, "^mean must be 3 numbers, not 'abc'"),
        ({"mean": (0.0, 1.0)}, ValueError, "^mean must be 3 finite numbers"),
    ]
    with fastssl.use_backend(backend):
        for options, error, text in wrong:
            with pytest.raises(error, match=text):
                augment(IMAGES, ROWS[0], **{"size": (16, 16), **options})
        for number in (NAN, INF, -INF):
            assert augment(IMAGES, ROWS[0] * 0 + number, (16, 16)).isfinite().all()


def test_what_is_odd_gives_the_same_on_every_backend():
    """Samples below zero are numbers as others; of seeds, all 64 bits and any whole number."""
    samples = torch.tensor([-1, -(2**63)])
    for seed in (2**64 - 1, np.uint64(2**64 - 1), np.int32(7), True):
        with fastssl.use_backend("reference"):
            right = RECIPE.parameters(IMAGES, samples, seed)
        assert all(map(torch.equal, RECIPE.parameters(IMAGES, samples, seed), right))
        assert all(map(torch.equal, RECIPE.parameters(IMAGES, samples, int(seed)), right))
    turned = [Rotation(View(8), every=False)(IMAGES, samples, s).labels for s in (7, np.uint8(7))]
    assert torch.equal(*turned)


def test_images_to_pack():
    image = torch.zeros(4, 5, 3, dtype=torch.uint8)
    for wrong in (image[:0], image[0], torch.zeros((), dtype=torch.uint8), image.float()):
        with pytest.raises(ValueError, match=r"^images\[1\] must be uint8 of shape \[H, W, 3\]"):
            Packed.of([image, wrong])
    with pytest.raises(TypeError, match=r"^images\[0\] must be a tensor, not list"):
        Packed.of([[1, 2]])


def test_drop_ins():
    one = Image.new("RGB", (4, 4))
    for wrong in (None, one, 3):
        with pytest.raises(TypeError, match=r"^images must be a batch, a uint8 tensor or a list"):
            Augment(RECIPE)(wrong)
    with pytest.raises(TypeError, match=r"^images\[1\] must be uint8, 0 to 255"):
        Augment(RECIPE)([one, torch.zeros(3, 4, 4)])
    with pytest.raises(TypeError, match=r"^recipe must be a fastssl.augment.Recipe, not View"):
        Collate(View(8))
