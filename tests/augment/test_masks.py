"""Hidden pixels: how many, where, how often, and of what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fastssl.augment import BlockMask, CentreMask, PatchMask, Recipe, View
from tests.augment.test_pretext import apart, batch

VIEW = View((24, 32), scale=(0.3, 1.0), flip=0.5)
CENTRE = CentreMask(VIEW)
BLOCKS = BlockMask(VIEW)
PATCHES = PatchMask(VIEW, patch=4)
TASKS = [CENTRE, BLOCKS, PATCHES, replace(PATCHES, ratio=0.0), replace(BLOCKS, blocks=1)]
SEED = 2**64 - 1


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_views_are_the_recipe_s_and_masks_a_sample_s(task):
    images, indices = batch(), torch.tensor([3, 1, 4, 10**12, 5, 9])
    made = task(images, indices, SEED, dtype=torch.bfloat16, channels_last=True)
    (views,) = Recipe((VIEW,))(images, indices, SEED, dtype=torch.bfloat16)
    assert torch.equal(made.images, views)
    assert made.images.is_contiguous(memory_format=torch.channels_last)
    order = torch.tensor([4, 0, 3])
    again = task(images[order], indices[order], SEED)
    assert torch.equal(made.mask[order], again.mask)
    assert torch.equal(made.mask[1:2], task(images[1:2], indices[1:2], SEED).mask)
    hidden = made.visible != made.images
    assert torch.equal(made.visible.masked_select(~hidden), made.images.masked_select(~hidden))
    assert (made.visible.masked_select(hidden) == 0).all()


def test_centre():
    made = CENTRE(batch(), torch.arange(6), 0)
    by_hand = torch.zeros(24, 32, dtype=torch.bool)
    by_hand[6:18, 8:24] = True
    assert torch.equal(made.mask, by_hand.expand(6, 1, 24, 32))
    assert CentreMask(View(1)).masks(torch.arange(2), 0).all()
    assert CentreMask(View(5), side=0.2).masks(torch.arange(1), 0).sum() == 1
    assert CentreMask(View(7), side=1.0).masks(torch.arange(1), 0).all()


def test_blocks():
    indices = torch.arange(4000)
    one = replace(BLOCKS, blocks=1).masks(indices, 7)[:, 0]  # sides of 3 to 6 and of 4 to 8
    rows, columns = one.any(2), one.any(1)
    assert torch.equal(one, rows[:, :, None] & columns[:, None])  # a rectangle
    for line, least, most in ((rows, 3, 6), (columns, 4, 8)):
        length = line.sum(1)
        start = line.int().argmax(1)
        assert (line.int().diff(dim=1) == 1).sum(1).max() <= 1  # without a gap
        count = most - least + 1
        assert apart(length.bincount(minlength=most + 1)[least:], [1 / count] * count) < 3.5
        places = line.shape[1] - most + 1
        here = start[length == most]
        assert apart(here.bincount(minlength=places), [1 / places] * places) < 3.5
    four = BLOCKS.masks(indices, 7)[:, 0]
    assert (four | one == four).all()  # the first of four is the only one
    share = four.float().mean((1, 2))
    assert share.max() <= 0.25
    assert len(share.unique()) > 50
    assert BlockMask(View(1)).masks(indices[:2], 0).all()


def test_patches():
    indices = torch.arange(3000)
    made = PATCHES(batch(1).expand(3000, -1, -1, -1), indices, 7)
    assert made.mask.shape == (3000, 6, 8)
    assert PATCHES.seen == 12
    assert made.kept.shape == (3000, 12)
    assert (made.mask.sum((1, 2)) == 36).all()
    flat = made.mask.flatten(1)
    assert not flat.gather(1, made.kept).any()
    assert (made.kept.sort(1).values.diff(dim=1) > 0).all()
    tokens = torch.arange(48).expand(3000, 48)
    order = PATCHES.order(indices, 7)
    assert torch.equal(order.gather(1, made.restore), tokens)
    assert torch.equal(order[:, :12], made.kept)
    assert apart(made.kept.flatten().bincount(minlength=48), [1 / 48] * 48) < 3.5
    assert apart(made.kept[:, 0].bincount(minlength=48), [1 / 48] * 48) < 3.5
    pairs = torch.corrcoef(flat.T.double())[~torch.eye(48, dtype=torch.bool)]
    assert abs(pairs.mean() + 1 / 47) < 2e-3  # as of a fixed number that are hidden
    hidden = (made.visible[0] == 0).all(0) & (made.images[0] != 0).any(0)
    by_hand = made.mask[0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(hidden, by_hand)
    assert PatchMask(View(224)).seen == 49
    assert not replace(PATCHES, ratio=0.0)(batch(), torch.arange(6), 0).mask.any()


def test_tasks_are_data():
    for task in TASKS:
        assert task == eval(repr(task), {type(task).__name__: type(task), "View": View})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CentreMask(side=0.0), "side must be a share"),
        (lambda: CentreMask(side=math.nan), "side must be a share"),
        (lambda: CentreMask(mean=(0.5, 0.5)), "mean must be one or three"),
        (lambda: BlockMask(blocks=0), "blocks must be a whole number, at least 1, not 0"),
        (lambda: BlockMask(side=(0.5, 0.2)), "side must be a range"),
        (lambda: BlockMask(side=(math.nan, 0.2)), "side must be a range"),
        (lambda: PatchMask(patch=15), "patch must divide the view, 224 × 224, not 15"),
        (lambda: PatchMask(patch=0), "patch must be a whole number"),
        (lambda: PatchMask(ratio=1.0), "ratio must be a share"),
        (lambda: PatchMask(ratio=math.nan), "ratio must be a share"),
        (lambda: PatchMask(View(16), ratio=0.5), "ratio must leave a patch"),
    ],
)
def test_bad_tasks_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_bad_batches_are_named(task):
    images, indices = batch(2), torch.arange(2)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed must lie in"):
            task(images, indices, seed)
    with pytest.raises(ValueError, match="indices must be int64"):
        task(images, indices[:1], 0)
    with pytest.raises(ValueError, match="none zero"):
        task(images[:0], indices[:0], 0)
    with pytest.raises(TypeError, match="uint8"):
        task(images.float(), indices, 0)
    assert task(batch(2, 1), indices, 0).visible.shape == (2, 1, 24, 32)
