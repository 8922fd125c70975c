"""Recipes where people augment today: a module that counts, a collate function, pixels of any
kind; and bad input on each way in."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from fastssl.augment import Augment, Collate, Numbered, Packed, Recipe, Sample, View, simclr
from fastssl.augment.pixels import packed, pixels

RECIPE = simclr(16)


def photos(count, grey_every=0):
    """Arrays [H, W, C] of different sizes."""
    noise = np.random.default_rng(0)
    shapes = [(20 + i, 31 - i, 3) for i in range(count)]
    images = [noise.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    return [x[:, :, 0] if grey_every and i % grey_every == 0 else x for i, x in enumerate(images)]


class Photos:
    """(Pillow image, label, name) for each."""

    def __init__(self, count=10):
        self.images = [Image.fromarray(x) for x in photos(count, grey_every=4)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i % 3, f"{i}.png"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(photos(4))


def test_augment_counts_its_calls_and_resumes():
    images = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    one = Augment(RECIPE, seed=7, dtype=torch.bfloat16, channels_last=True)
    first, second = one(images), one(images)
    assert one.calls == 2
    assert not torch.equal(first[0], second[0])
    assert first[0].dtype == torch.bfloat16
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first[1], Augment(RECIPE, 7, dtype=torch.bfloat16)(images)[1])
    file = io.BytesIO()
    torch.save(torch.nn.Sequential(one).state_dict(), file)
    file.seek(0)
    other = torch.nn.Sequential(Augment(RECIPE, seed=3, dtype=torch.bfloat16))
    other.load_state_dict(torch.load(file, weights_only=True))
    for mine, theirs in zip(other(images), one(images), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(Augment(RECIPE, 8)(images)[0], Augment(RECIPE, 7)(images)[0])


def test_augment_takes_batches_packed_images_and_lists():
    arrays = photos(4)
    tensors = [torch.from_numpy(x).permute(2, 0, 1) for x in arrays]
    want = Augment(RECIPE)(Packed.of([torch.from_numpy(x) for x in arrays]))
    for images in (arrays, tensors, [Image.fromarray(x) for x in arrays]):
        for mine, theirs in zip(Augment(RECIPE)(images), want, strict=True):
            assert torch.equal(mine, theirs)
    numbers = torch.tensor([2, 0, 3, 1])
    order = Augment(RECIPE)([arrays[i] for i in numbers], numbers)
    assert torch.equal(order[0], want[0][numbers])


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", 3), ("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3),
                           ("CMYK", 3), ("YCbCr", 3)],
)  # fmt: skip
def test_pixels_of_pillow(mode, channels):
    image = Image.fromarray(photos(1)[0]).convert(mode)
    x = pixels(image)
    want = np.array(image.convert("RGB" if channels == 3 else "L")).reshape(x.shape)
    assert x.shape == (20, 31, channels)
    assert torch.equal(x, torch.from_numpy(want))
    assert pixels(image, 3).shape == (20, 31, 3)


def test_pixels_of_arrays_and_tensors():
    x = torch.from_numpy(photos(1)[0])
    reversed_rows = x.numpy()[::-1]
    fixed = x.numpy().copy()
    fixed.flags.writeable = False
    for other in (x, x.permute(2, 0, 1), x.numpy(), fixed, x.permute(2, 0, 1).numpy()):
        assert torch.equal(pixels(other), x)
    assert torch.equal(pixels(reversed_rows), x.flip(0))
    grey = x[:, :, 0]
    assert torch.equal(pixels(grey, 3), grey[:, :, None].expand(-1, -1, 3))
    assert pixels(torch.zeros(3, 5, 3, dtype=torch.uint8)).shape == (5, 3, 3)  # [C, H, W]
    assert pixels(np.zeros((3, 5, 3), np.uint8)).shape == (3, 5, 3)  # [H, W, C]


def test_collate_joins_what_is_beside_the_image():
    collate = Collate(RECIPE)
    arrays = photos(3)
    views = collate(arrays)
    assert [v.shape for v in views] == [(3, 3, 16, 16)] * 2
    (two, labels, names) = collate([Photos()[i] for i in range(4)])
    assert [v.shape for v in two] == [(4, 3, 16, 16)] * 2
    assert labels.tolist() == [0, 1, 2, 0]
    assert names == [f"{i}.png" for i in range(4)]
    last = Collate(RECIPE, image=-1)([(i, x) for i, x in enumerate(arrays)])
    assert last[0].tolist() == [0, 1, 2]
    assert len(last[1]) == 2
    by_name = Collate(RECIPE, image="image")
    made = by_name([{"image": x, "label": i} for i, x in enumerate(arrays)])
    assert made["label"].tolist() == [0, 1, 2]
    assert len(made["image"]) == 2
    assert list(by_name([{"image": arrays[0]}])) == ["image"]
    grey = Collate(RECIPE, channels=1)([Image.new("L", (9, 9))] * 2)
    assert grey[0].shape == (2, 1, 16, 16)


def epoch_of(loader, numbers):
    """The first views of a pass over the loader, by sample."""
    views = {}
    for made, _, names in loader:
        for view, name in zip(made[0], names, strict=True):
            views[int(name.removesuffix(".png"))] = view.clone()
    return torch.stack([views[i] for i in range(numbers)])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_collate_makes_the_same_views_in_any_number_of_workers(context):
    collate = Collate(RECIPE, seed=5)
    data = Numbered(Photos())
    here = []
    for epoch in range(2):
        collate.set_epoch(epoch)
        here.append(epoch_of(DataLoader(data, 4, collate_fn=collate), 10))
    assert not torch.equal(*here)
    loader = DataLoader(
        data, 3, shuffle=True, num_workers=2, collate_fn=collate, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    for epoch in (1, 0, 1):  # workers that live on see it
        collate.set_epoch(epoch)
        assert torch.equal(epoch_of(loader, 10), here[epoch])


def test_collate_without_numbers_draws_them():
    data = Photos()
    loader = DataLoader(data, 5, num_workers=0, collate_fn=Collate(RECIPE))
    torch.manual_seed(3)
    first, second = epoch_of(loader, 10), epoch_of(loader, 10)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(epoch_of(loader, 10), first)
    views = next(iter(DataLoader(Stream(), 4, num_workers=1, collate_fn=Collate(RECIPE))))
    assert [v.shape for v in views] == [(4, 3, 16, 16)] * 2


def test_collate_is_the_recipe_and_copies_are_its_equals():
    collate, images = Collate(RECIPE, seed=9), photos(3)
    collate.set_epoch(4)
    items = [Sample(i, x) for i, x in enumerate(images)]
    want = collate(items)
    for other in (copy.deepcopy(collate), pickle.loads(pickle.dumps(collate))):
        assert other._epoch.is_shared()
        assert torch.equal(other(items)[1], want[1])
        other.set_epoch(5)
        assert not torch.equal(other(items)[1], want[1])
    assert collate.epoch == 4
    collate.set_epoch(0)
    plain = RECIPE(packed(images), torch.arange(3), 9)
    assert torch.equal(collate(items)[0], plain[0])
    assert torch.equal(collate(items[::-1])[0], plain[0].flip(0))


GOOD = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
NUMBERS = torch.arange(2)
WRONG = {
    "float images": (TypeError, "images must be a uint8 tensor",
                     lambda: RECIPE(GOOD / 255, NUMBERS, 0)),
    "no tensor": (TypeError, "images must be a uint8 tensor",
                  lambda: RECIPE(GOOD.numpy(), NUMBERS, 0)),
    "empty batch": (ValueError, "none zero", lambda: RECIPE(GOOD[:0], NUMBERS[:0], 0)),
    "zero-sized": (ValueError, "none zero", lambda: RECIPE(GOOD[:, :, :0], NUMBERS, 0)),
    "two channels": (ValueError, "C = 1 or 3", lambda: RECIPE(GOOD[:, :2], NUMBERS, 0)),
    "one image": (ValueError, "images must have shape", lambda: RECIPE(GOOD[0], NUMBERS, 0)),
    "fewer numbers": (ValueError, r"indices must be int64 of shape \[2\]",
                      lambda: RECIPE(GOOD, NUMBERS[:1], 0)),
    "int32 numbers": (ValueError, "not torch.int32", lambda: RECIPE(GOOD, NUMBERS.int(), 0)),
    "a list of numbers": (ValueError, "indices must be int64", lambda: RECIPE(GOOD, [0, 1], 0)),
    "65 bits": (ValueError, r"seed must lie in \[0, 2\^64\)", lambda: RECIPE(GOOD, NUMBERS, 2**64)),
    "negative seed": (ValueError, "seed must lie", lambda: RECIPE(GOOD, NUMBERS, -1)),
    "float seed": (TypeError, "seed must be a whole number", lambda: RECIPE(GOOD, NUMBERS, 0.5)),
    "double views": (TypeError, "dtype must be",
                     lambda: RECIPE(GOOD, NUMBERS, 0, dtype=torch.float64)),
    "no views": (ValueError, "views must hold at least one", lambda: Recipe(())),
    "NaN range": (ValueError, "scale must be a range", lambda: View(scale=(float("nan"), 1))),
    "NaN jitter": (ValueError, "hue must", lambda: View(hue=float("nan"))),
    "infinite blur": (ValueError, "sigma must be a range", lambda: View(sigma=(1, float("inf")))),
    "NaN mean": (ValueError, "mean must be", lambda: replace(RECIPE, mean=(float("nan"),))),
    "no std": (ValueError, "std must not be 0", lambda: replace(RECIPE, std=(0.2, 0.0, 0.1))),
    "NaN threshold": (ValueError, "threshold must", lambda: View(threshold=float("nan"))),
    "size of three": (ValueError, "size must be", lambda: View((4, 4, 4))),
    "augment: no recipe": (TypeError, "recipe must be", lambda: Augment(View())),
    "augment: seed": (ValueError, "seed must lie", lambda: Augment(RECIPE, 2**64)),
    "augment: dtype": (TypeError, "dtype must be", lambda: Augment(RECIPE, dtype=torch.int8)),
    "augment: nothing": (ValueError, "images must hold", lambda: Augment(RECIPE)([])),
    "augment: mixed": (ValueError, r"images\[1\] must be grey where",
                       lambda: Augment(RECIPE)([GOOD[0, 0], GOOD[0]])),
    "collate: no recipe": (TypeError, "recipe must be", lambda: Collate(None)),
    "collate: channels": (ValueError, "channels must be 1 or 3",
                          lambda: Collate(RECIPE, channels=2)),
    "collate: nothing": (ValueError, "items must hold", lambda: Collate(RECIPE)([])),
    "collate: path": (TypeError, r"images\[0\] must be an image of Pillow, .* not str",
                      lambda: Collate(RECIPE)([("a.png", 1)])),
    "collate: float": (TypeError, r"images\[1\] must be uint8",
                       lambda: Collate(RECIPE)([GOOD[0], GOOD[0] / 255])),
    "collate: float array": (TypeError, r"images\[0\] must be uint8, .* not torch.float64",
                             lambda: Collate(RECIPE)([np.zeros((4, 4, 3))])),
    "collate: objects": (TypeError, r"images\[0\] must be uint8, .* not object",
                         lambda: Collate(RECIPE)([np.array([[None]])])),
    "collate: 16 bits": (TypeError, "8 bits a channel, not Pillow's mode I;16",
                         lambda: Collate(RECIPE)([Image.new("I;16", (4, 4))])),
    "collate: empty image": (ValueError, r"images\[0\] has no pixels",
                             lambda: Collate(RECIPE)([GOOD[0, :, :0]])),
    "collate: empty array": (ValueError, r"images\[0\] has no pixels",
                             lambda: Collate(RECIPE)([np.zeros((0, 4, 3), np.uint8)])),
    "collate: empty Pillow": (ValueError, r"images\[0\] has no pixels",
                              lambda: Collate(RECIPE)([Image.new("RGB", (0, 4))])),
    "collate: four channels": (ValueError, r"images\[0\] must have shape",
                               lambda: Collate(RECIPE)([np.zeros((5, 5, 4), np.uint8)])),
    "collate: colour": (ValueError, r"images\[0\] must be grey",
                        lambda: Collate(RECIPE, channels=1)([GOOD[0]])),
    "collate: place": (ValueError, "image must say where .* not 2: they have 2 in each",
                       lambda: Collate(RECIPE, image=2)([(GOOD[0], 1)])),
    "collate: key": (ValueError, r"not 0: they have \['img'\]",
                     lambda: Collate(RECIPE)([{"img": GOOD[0]}])),
    "collate: epoch": (ValueError, "epoch must not be negative",
                       lambda: Collate(RECIPE).set_epoch(-1)),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_named(what):
    error, text, call = WRONG[what]
    with pytest.raises(error, match=text):
        call()


def test_what_is_unusual_but_right():
    """One pixel, a view far larger, seeds and numbers at their ends."""
    image = torch.full((1, 3, 1, 1), 200, dtype=torch.uint8)
    for seed in (0, 2**64 - 1):
        for number in (0, -1, 2**63 - 1):
            view = Recipe((View(40, scale=(0.5, 1.0)),), (0.0,), (1.0,))
            (made,) = view(image, torch.tensor([number]), seed)
            assert torch.allclose(made, torch.full_like(made, 200 / 255))
    assert RECIPE(image[:, :1], torch.tensor([0]), 0)[0].shape == (1, 1, 16, 16)
