"""Tasks of pieces and turns: pixels as the formulas have them, draws as often as is their due."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fastssl import augment, ops
from fastssl.augment import (
    Counting,
    Jigsaw,
    Packed,
    RelativePatches,
    Rotation,
    View,
    far_permutations,
)
from fastssl.augment.recipes import IMAGENET_MEAN, IMAGENET_STD
from fastssl.reference import pretext as reference

ROTATION = Rotation(View(24, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5))
ONE_TURN = replace(ROTATION, every=False)
PAIRS = RelativePatches(size=8, gap=3, jitter=1, image=32)
JIGSAW = Jigsaw(20, size=8, cell=11, each=False)
COUNTING = Counting(size=12, image=28)
TASKS = [ROTATION, ONE_TURN, PAIRS, replace(PAIRS, grey=0.5), JIGSAW, replace(JIGSAW, each=True),
         Jigsaw(24, size=8, cell=9, grid=2), COUNTING]  # fmt: skip
SIZES = [(40, 30), (33, 33), (1, 1), (2, 3), (1, 90), (300, 7), (61, 64)]
SEED = 2**64 - 1


def photographs(channels=3, sizes=SIZES):
    g = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (*s, channels), generator=g, dtype=torch.uint8) for s in sizes]


def batch(count=6, channels=3, height=40, width=33):
    g = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, channels, height, width), generator=g, dtype=torch.uint8)


def tensors(result):
    """Every tensor of a result, samples in front."""
    rows = len(result.labels if hasattr(result, "labels") else result.others)
    for x in result:
        yield x if len(x) == rows else x.transpose(0, 1)


def normalised(x):  # [..., 3, h, w] in units of 1/255
    mean, std = (torch.tensor(n).double().view(3, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD))
    return (x / 255 - mean) / std


def pieces(crops, size, images):
    """float64 [V, B, C, size, size]: each piece cut out and resized by itself."""
    planar = [image.permute(2, 0, 1).double() for image in images]
    return torch.stack(
        [
            torch.stack([reference.piece(i, c, size) for i, c in zip(planar, row, strict=True)])
            for row in crops.tolist()
        ]
    )


def close(x, truth):
    torch.testing.assert_close(x.double(), truth, rtol=0, atol=2e-5)  # 1e-5 of float, over std


def drawn_for(images):
    sizes = torch.tensor([image.shape[:2] for image in images])
    return Packed.of(images), sizes, torch.arange(len(images)) * 10**11 + 5


def test_relative_patches_are_the_formulas():
    images = photographs()
    packed, sizes, indices = drawn_for(images)
    crops, labels, _ = reference.relative_patches(sizes, indices, SEED, 8, 3, 1, 32)
    truth = normalised(pieces(crops, 8, images))
    made = PAIRS(packed, indices, SEED)
    close(made.centre, truth[0])
    close(made.neighbour, truth[1])
    assert torch.equal(made.labels, labels)


def test_jigsaw_is_the_formulas():
    images = photographs()
    packed, sizes, indices = drawn_for(images)
    order = far_permutations(20)
    crops, labels, _ = reference.jigsaw(sizes, indices, SEED, order, 8, 11)
    truth = pieces(crops, 8, images)
    made = JIGSAW(packed, indices, SEED)
    close(made.patches, normalised(truth))
    assert torch.equal(made.labels, labels)
    each = replace(JIGSAW, each=True)(packed, indices, SEED).patches
    std, mean = torch.std_mean(truth / 255, dim=(3, 4), correction=0, keepdim=True)
    close(each, (truth / 255 - mean) / std.clamp(min=1 / 255))


def test_counting_is_the_formulas():
    images = photographs()
    packed, sizes, indices = drawn_for(images)
    crops, others, _ = reference.counting(sizes, indices, SEED, 12, 28)
    truth = normalised(pieces(crops, 12, images))
    made = COUNTING(packed, indices, SEED)
    close(made.tiles, truth[:4])
    close(made.whole, truth[4])
    assert torch.equal(made.others, others)


@pytest.mark.parametrize("quantized", [False, True])
def test_rotation_turns_one_view(quantized):
    images, indices = batch(), torch.arange(6)
    task = replace(ROTATION, quantized=quantized)
    made = task(images, indices, 3)
    assert made.labels.tolist() == [k for k in range(4) for _ in range(6)]
    (view,) = augment.Recipe((task.view,), quantized=quantized)(images, indices, 3)
    for k, x in enumerate(made.images.chunk(4)):
        assert torch.equal(x, view.rot90(k, (2, 3)))
    one = replace(task, every=False)(images, indices, 3)
    for i, k in enumerate(one.labels.tolist()):
        assert torch.equal(one.images[i], made.images[6 * k + i])
    close(Rotation(View(33))(batch(height=33), indices, 3).images[6:12],
          normalised(batch(height=33).double().rot90(1, (2, 3))))  # fmt: skip


@pytest.mark.parametrize("erase", [0.0, 0.7])
@pytest.mark.parametrize("channels_last", [False, True])
def test_turns_of_a_view_are_those_of_its_parameters(channels_last, erase):
    """Made once and turned, or, where a patch goes with the upright view, made four times: what the
    op makes of the task's own rows."""
    view = replace(
        ROTATION.view, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2,
        blur=0.5, taps=5, solarize=0.2, erase=erase,
    )  # fmt: skip
    task, images, indices = replace(ROTATION, view=view), batch(), torch.arange(6)
    made = task(images, indices, 3, channels_last=channels_last).images
    rows, _ = task.parameters(images, indices, 3)
    right = ops.augment(images, rows, view.shape, taps=5, mean=task.mean, std=task.std)
    assert (made - right).abs().max() < 1e-4
    kept = torch.channels_last if channels_last else torch.contiguous_format
    assert made.is_contiguous(memory_format=kept)
    patched = (made == 0).all(1).flatten(1).any(1).float().mean()
    assert (patched > 0.3) == (erase > 0)


def test_pieces_of_an_image_of_the_nominal_size_are_its_own_pixels():
    """Nothing is resized: each piece is found in the image, where the label says."""
    image = torch.arange(255 * 255).view(1, 1, 255, 255)
    image = torch.cat([image // 255, image % 255, image * 0], dim=1).byte()  # row and column
    images, indices = image.expand(120, -1, -1, -1), torch.arange(120)
    plain = dict(mean=(0.0,), std=(1 / 255,))

    puzzle = Jigsaw(100, each=False, **plain)(images, indices, 1)
    corner = puzzle.patches[:, :, :2, 0, 0].round().long()  # [9, B, 2]
    order = far_permutations(100)[puzzle.labels].T
    within = corner - 85 * torch.stack([order // 3, order % 3], dim=2)
    assert within.unique().tolist() == list(range(22))  # 85 - 64, and all of them
    square = puzzle.patches - puzzle.patches[..., :1, :1]
    ramp = torch.arange(64.0)
    close(square[:, :, 0], ramp[:, None].expand(9, 120, 64, 64).double())
    close(square[:, :, 1], ramp.expand(9, 120, 64, 64).double())

    pair = RelativePatches(60, 20, 3, image=255, **plain)(images, indices, 1)
    step = (pair.neighbour - pair.centre)[:, :2, 0, 0].round().long()  # [B, 2]
    place = pair.labels + (pair.labels > 3)
    around = torch.stack([place // 3, place % 3], dim=1) - 1
    jitter = step - 80 * around
    assert jitter.unique().tolist() == list(range(-6, 7))
    first = pair.centre[:, :2, 0, 0].round()  # free of the label: each mean is of 60 or so
    for label in range(8):
        here = first[pair.labels == label]
        assert ((here.mean(0) - first.mean(0)).abs() < 4 * first.std(0) / len(here) ** 0.5).all()

    counted = Counting(100, image=255, **plain)(images, indices, 1)
    for tile, move in zip(counted.tiles, [(0, 0), (0, 100), (100, 0), (100, 100)], strict=True):
        corner = counted.tiles[0][:, :2, :1, :1] + torch.tensor(move).view(2, 1, 1)
        assert torch.equal(tile[:, :2, :1, :1].round(), corner.round())
    middle = counted.whole[:, :2].mean((2, 3)) - counted.tiles[:, :, :2].mean((0, 3, 4))
    assert middle.abs().max() < 1e-2  # the same part of the image


def apart(found, chances):
    """Chi-square, in standard deviations above its mean: the seeds are fixed."""
    expected = torch.tensor(chances) * found.sum()
    freedom = len(chances) - 1
    return float((((found - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def test_every_label_is_as_likely():
    count = 20000
    sizes, indices = torch.tensor([[48, 64]]).expand(count, 2), torch.arange(count)
    order = far_permutations(100)
    labels = {
        4: reference.turns(indices, 5),
        8: reference.relative_patches(sizes, indices, 5, 8, 3, 1, 48)[1],
        100: reference.jigsaw(sizes, indices, 5, order, 8, 11)[1],
        32: reference.below(reference.counting(sizes, indices, 5, 12, 28)[2], 32),
    }
    for classes, found in labels.items():
        assert apart(found.bincount(minlength=classes), [1 / classes] * classes) < 3.5
    crops = reference.jigsaw(sizes, indices, 5, order, 16, 16)[0]  # cells without jitter
    assert (crops[..., 0].amin(0) == 0).all()
    assert apart(crops[..., 1].amin(0).bincount(), [1 / 17] * 17) < 3.5  # of the square: 64 - 48
    crops = reference.counting(sizes, indices, 5, 12, 48)[0]
    for axis, places in ((0, 25), (1, 41)):  # of 24 in 48 and in 64
        assert apart(crops[4, :, axis].bincount(), [1 / places] * places) < 3.5
    crops, label, _ = reference.relative_patches(sizes, indices, 5, 8, 3, 1, 48)
    top = crops[0, :, 0]  # of 17 corners by 3 moves
    assert apart(torch.bincount(top - top.min()), _sum_of(48 - 32 + 1, 3)) < 3.5
    left = crops[0, :, 1]
    assert apart(torch.bincount(left - left.min()), _sum_of(64 - 32 + 1, 3)) < 3.5
    pair = torch.bincount(label * 3 + (top - top.min()) % 3, minlength=24)
    assert apart(pair, [1 / 8 * w for _ in range(8) for w in _thirds(48 - 32 + 1)]) < 3.5
    others = reference.counting(sizes[:5], indices[:5], 5, 12, 28)[1]
    assert (others != torch.arange(5)).all()
    many = torch.stack(
        [reference.counting(sizes[:5], indices[:5], s, 12, 28)[1] for s in range(999)]
    )
    assert apart(many[:, 0].bincount(minlength=5)[1:], [1 / 4] * 4) < 3.5


def _sum_of(n, m):
    """Chances of the sum of two whole numbers, each as likely below n and below m."""
    chances = [0.0] * (n + m - 1)
    for i in range(n):
        for j in range(m):
            chances[i + j] += 1 / (n * m)
    return chances


def _thirds(n):
    chances = _sum_of(n, 3)
    return [sum(chances[r::3]) for r in range(3)]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_a_sample_is_the_same_in_any_batch(task):
    images, indices = batch(), torch.tensor([3, 1, 4, 10**12, 5, 9])
    made = task(images, indices, SEED)
    order = torch.tensor([4, 0, 3])
    packed = Packed.of([image.permute(1, 2, 0) for image in images[order]])
    again = task(packed, indices[order], SEED)
    if isinstance(task, Rotation):
        parts = 4 if task.every else 1
        order = torch.cat([order + 6 * k for k in range(parts)])
    for one, other, name in zip(tensors(made), tensors(again), made._fields, strict=True):
        assert torch.equal(one[order], other) or name == "others"
    last = task(images.permute(0, 2, 3, 1), indices, SEED)
    for one, other in zip(made, last, strict=True):
        assert torch.equal(one, other)
    if task is not COUNTING:
        single = task(images[1:2], indices[1:2], SEED)
        for one, other in zip(tensors(made), tensors(single), strict=True):
            assert torch.equal(one[1], other[0])
    assert not torch.equal(made[0], task(images, indices, 1)[0])


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_gives_finite_pieces(task, channels):
    images = photographs(channels)
    packed, _, indices = drawn_for(images)
    for dtype, channels_last in ((torch.bfloat16, True), (torch.float16, False)):
        made = task(packed, indices, 0, dtype=dtype, channels_last=channels_last)
        for x in made:
            assert torch.isfinite(x).all()
            assert x.dtype in (dtype, torch.int64)
        assert made[0].shape[-3] == channels
        if channels_last:
            flat = made[0] if made[0].dim() == 4 else made[0].flatten(0, 1)
            assert flat.is_contiguous(memory_format=torch.channels_last)
    shown = task(packed, indices, 0)[0].double()
    assert (task(packed, indices, 0, dtype=torch.bfloat16)[0].double() - shown).abs().max() < 0.1


def test_passes_through_compile():
    for task in (ONE_TURN, JIGSAW):
        compiled = torch.compile(task.__call__, fullgraph=True, backend="aot_eager")
        for seed in (1, 2, 2**64 - 1):
            whole = task(batch(), torch.arange(6), seed)
            for one, other in zip(whole, compiled(batch(), torch.arange(6), seed), strict=True):
                assert torch.equal(one, other)


def test_grey_is_of_a_sample():
    images, indices = batch(400), torch.arange(400)
    for task in (PAIRS, JIGSAW, COUNTING):
        task = replace(task, grey=0.25, mean=(0.0,), std=(1.0,))
        made = list(tensors(task(images, indices, 2)))[:-1]
        colourless = torch.stack(
            [(x - x.mean(-3, keepdim=True)).abs().flatten(1).amax(1) < 1e-5 for x in made]
        )
        assert (colourless == colourless[0]).all()  # of all pieces or of none
        assert abs(colourless[0].float().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_flat_patches_are_nothing():
    flat = torch.full((2, 3, 33, 33), 77, dtype=torch.uint8)
    assert (Jigsaw(4, size=8, cell=11)(flat, torch.arange(2), 0).patches == 0).all()


def test_tasks_are_data():
    for task in TASKS:
        names = {c.__name__: c for c in (*map(type, TASKS), View)}
        assert task == eval(repr(task), names)
        assert hash(task) == hash(replace(task))
    rows, labels = JIGSAW.parameters(batch(), torch.arange(6), 0)
    assert rows.shape == (54, len(augment.Column))
    assert labels.shape == (6,)
    images = JIGSAW(batch(), torch.arange(6), 0).patches
    by_hand = augment.Recipe((View(8),) * 9).apply(batch(), list(rows.chunk(9)))
    assert torch.equal(images, torch.stack(by_hand))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rotation(View((8, 9))), "view must be square.*8 × 9"),
        (lambda: Rotation(View(8, turn=0.5)), "its turn 0"),
        (lambda: RelativePatches(size=0), "size must be a whole number, at least 1, not 0"),
        (lambda: RelativePatches(size=math.nan), "size must be a whole number"),
        (lambda: RelativePatches(gap=-1), "gap must be a whole number, at least 0, not -1"),
        (lambda: RelativePatches(jitter=20), "image must be at least 424"),
        (lambda: RelativePatches(grey=math.nan), "grey must be a probability"),
        (lambda: Jigsaw(0), "permutations must be"),
        (lambda: Jigsaw(25, grid=2), "permutations must be at most 24"),
        (lambda: Jigsaw(grid=4), "grid must be 2 or 3, not 4"),
        (lambda: Jigsaw(size=86), "size must be at most cell, 85"),
        (lambda: Counting(image=200), "image must be at least 224"),
        (lambda: Counting(grey=1.1), "grey must be a probability"),
        (lambda: far_permutations(0), "count must lie in"),
        (lambda: far_permutations(2, 10), "cells must lie in"),
        (lambda: COUNTING(batch(1), torch.arange(1), 0), "two or more"),
    ],
)  # fmt: skip
def test_bad_tasks_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_bad_batches_are_named(task):
    images, indices = batch(2), torch.arange(2)
    for seed in (-1, 2**64, 2**70):
        with pytest.raises(ValueError, match="seed must lie in"):
            task(images, indices, seed)
    for bad in (indices[:1], indices.int(), indices[None]):
        with pytest.raises(ValueError, match="indices must be int64"):
            task(images, bad, 0)
    with pytest.raises(TypeError, match="uint8"):
        task(images.float(), indices, 0)
    with pytest.raises(ValueError, match="none zero"):
        task(images[:0], indices[:0], 0)
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="images must hold at least one"):
        task(Packed(torch.zeros(0).byte(), nothing, nothing.view(0, 2)), nothing, 0)
    sizeless = Packed(torch.zeros(30).byte(), torch.tensor([0, 27]), torch.tensor([[3, 3], [0, 5]]))
    with pytest.raises(ValueError, match="image 1 has no pixels"):
        task(sizeless, indices, 0)
    with pytest.raises(ValueError, match="images' device"):
        task(images, indices.to("meta"), 0)
    with pytest.raises(TypeError, match="dtype"):
        task(images, indices, 0, dtype=torch.float64)


def greedy_by_sums(count):
    """The paper's procedure, from the identity: the largest sum of distances."""
    every = torch.cartesian_prod(*[torch.arange(6, dtype=torch.uint8)] * 6)
    every = every[(every.sort(1).values == torch.arange(6)).all(1)]
    total, chosen = torch.zeros(len(every)), [0]
    while len(chosen) < count:
        total += (every != every[chosen[-1]]).sum(1)
        left = total.clone()
        left[chosen] = -1
        chosen.append(int(left.argmax()))
    return every[chosen].long()


def distances(permutations):
    d = (permutations[:, None] != permutations).sum(2)
    return d[~torch.eye(len(d), dtype=torch.bool)].double()


def test_permutations_are_far_from_each_other():
    far = far_permutations(100)
    assert far is far_permutations(100)
    assert torch.equal(far.sort(1).values, torch.arange(9).expand(100, 9))
    assert torch.equal(far[:20], far_permutations(20))
    assert distances(far[:9]).min() == 9  # no two have a place in common: the most there can be
    assert distances(far[:20]).min() == 7
    assert distances(far).min() == 6
    assert distances(far).mean() > 8.079  # of any set, about 8 · 100 / 99
    for count in (2, 5, 10, 30, 100):
        mine, theirs = distances(far_permutations(count, 6)), distances(greedy_by_sums(count))
        assert mine.min() >= theirs.min()
        assert mine.mean() > theirs.mean() - 0.05
    assert len(far_permutations(720, 6).unique(dim=0)) == 720
    assert far_permutations(1, 1).tolist() == [[0]]
