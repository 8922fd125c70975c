"""Colours: Lab by an independent formula, bins as Zhang et al. have them, and back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl.augment import (
    Colorization,
    Packed,
    Recipe,
    SplitBrain,
    View,
    ab_bins,
    ab_labels,
    decode_ab,
    lab_to_rgb,
    rgb_to_lab,
    soft_ab_labels,
)
from tests.augment.test_pretext import batch, drawn_for, photographs

VIEW = View(24, scale=(0.3, 1.0), flip=0.5)
COLOURS = Colorization(VIEW, stride=3)
SPLIT = SplitBrain(VIEW, stride=3)
SEED = 2**64 - 1


def every_colour(step=15):
    """sRGB's cube and all of its surface, [n, 3] in [0, 1]."""
    line, fine = torch.arange(0, 256, step).double() / 255, torch.arange(0, 256, 5).double() / 255
    faces = [
        torch.cartesian_prod(*(ends if axis == fixed else fine for axis in range(3)))
        for fixed in range(3)
        for ends in [torch.tensor([0.0, 1.0]).double()]
    ]
    return torch.cat([torch.cartesian_prod(line, line, line), *faces])


def pixels(colours):  # [n, C] to [1, C, 1, n]
    return colours.T[None, :, None]


def lab_by_hand(rgb):
    """scikit-image's rgb2lab (illuminant D65, observer 2°), in numpy: float64 [n, 3]."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = rgb / 12.92
    above = rgb > 0.04045
    linear[above] = np.power((rgb[above] + 0.055) / 1.055, 2.4)
    x, y, z = (
        linear @ np.array(row)
        for row in (
            (0.412453, 0.35758, 0.180423),
            (0.212671, 0.71516, 0.072169),
            (0.019334, 0.119193, 0.950227),
        )
    )
    xyz = np.stack([x, y, z], axis=1) / np.array([0.95047, 1.0, 1.08883])
    f = 7.787 * xyz + 16.0 / 116.0
    above = xyz > 0.008856
    f[above] = np.cbrt(xyz[above])
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_lab_is_the_formula():
    rgb = every_colour()
    truth = torch.from_numpy(lab_by_hand(rgb.numpy()))
    lab = rgb_to_lab(pixels(rgb))
    torch.testing.assert_close(lab[0, :, 0].T, truth, rtol=0, atol=1e-11)
    single = rgb_to_lab(pixels(rgb.float()))[0, :, 0].T
    rounded = torch.from_numpy(lab_by_hand(rgb.float().double().numpy()))
    torch.testing.assert_close(single.double(), rounded, rtol=0, atol=1e-3)
    assert torch.isfinite(single).all()


def test_lab_of_known_colours():
    known = {  # as CIE's tables for sRGB have them
        (0, 0, 0): (0, 0, 0), (1, 1, 1): (100, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 1, 0): (87.73, -86.18, 83.18), (0, 0, 1): (32.30, 79.19, -107.86),
    }  # fmt: skip
    lab = rgb_to_lab(pixels(torch.tensor(list(known)).double()))[0, :, 0].T
    torch.testing.assert_close(lab, torch.tensor(list(known.values())).double(), rtol=0, atol=0.02)


def test_lab_and_back():
    rgb = pixels(every_colour())
    # the two straight parts meet their curves to four digits or so, in scikit-image as well
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-5)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb.float())), rgb.float(), rtol=0, atol=1e-4)
    beyond = torch.tensor([[50.0, 200.0, -200.0], [100.0, 90.0, 90.0], [0.0, -90.0, 9.0]])
    cut = lab_to_rgb(pixels(beyond))
    assert ((cut >= 0) & (cut <= 1)).all()


def test_bins_cover_what_srgb_has():
    bins = ab_bins()
    assert bins.shape == (313, 2)
    assert bins[[0, 1, 5, 312]].tolist() == [[-90, 50], [-90, 60], [-80, 20], [100, 0]]
    mine = {tuple(b) for b in bins.long().tolist()}
    assert len(mine) == 313
    assert sorted(mine) == [tuple(b) for b in bins.long().tolist()]
    ab = rgb_to_lab(pixels(every_colour(5)))[0, 1:, 0].T
    cells = (ab / 10).floor().long().unique(dim=0) * 10  # the corners of every cell with a colour
    corners = {(a + i, b + j) for a, b in cells.tolist() for i in (0, 10) for j in (0, 10)}
    assert corners <= mine
    assert len(mine - corners) < 10


def test_labels_are_the_nearest_bins():
    ab = rgb_to_lab(pixels(every_colour().float()))[:, 1:]  # [1, 2, 1, n]
    squares = torch.cdist(ab[0, :, 0].T.double(), ab_bins().double()) ** 2
    near, order = squares.sort(dim=1)
    label = ab_labels(ab)[0, 0]
    chosen = squares.gather(1, label[:, None])[:, 0]
    torch.testing.assert_close(chosen, near[:, 0], rtol=1e-5, atol=1e-5)
    assert (label == order[:, 0])[near[:, 1] - near[:, 0] > 1e-3].all()
    for count, sigma in ((1, 5.0), (5, 5.0), (9, 2.0)):
        bins, weights = soft_ab_labels(ab, count, sigma)
        assert bins.shape == weights.shape == (1, count, 1, label.numel())
        found = squares.gather(1, bins[0, :, 0].T)
        torch.testing.assert_close(found, near[:, :count], rtol=1e-4, atol=1e-3)
        truth = torch.exp(-found / (2 * sigma**2))
        truth /= truth.sum(dim=1, keepdim=True)
        torch.testing.assert_close(weights[0, :, 0].T.double(), truth, rtol=1e-3, atol=1e-6)
    centres = pixels(ab_bins())
    assert torch.equal(ab_labels(centres)[0, 0], torch.arange(313))
    strange = torch.tensor([[math.nan, 500.0, -500.0, 0.0], [0.0, math.inf, -math.inf, math.nan]])
    labels = ab_labels(strange[None, :, None])
    assert ((labels >= 0) & (labels < 313)).all()
    assert labels[0, 0, 0] == labels[0, 0, 3] == ab_labels(torch.zeros(1, 2, 1, 1)).item()


def test_decoding():
    bins = ab_bins()
    logits = torch.full((1, 313, 1, 313), -1e4)
    logits[0, range(313), 0, range(313)] = 0.0
    torch.testing.assert_close(decode_ab(logits)[0, :, 0].T, bins)
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 313, 3, 4, generator=g)
    for temperature in (0.38, 1.0):
        shares = logits.double().exp() ** (1 / temperature)  # the paper's: exp(log z / T)
        truth = torch.einsum("bqhw,qc->bchw", shares, bins.double()) / shares.sum(1, keepdim=True)
        made = decode_ab(logits, temperature)
        torch.testing.assert_close(made.double(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantized", [False, True])
def test_tasks_are_the_formulas(quantized):
    packed, _, indices = drawn_for(photographs())
    recipe = Recipe((VIEW,), (0.0,), (1.0,), quantized)
    rgb = recipe(packed, indices, SEED)[0]
    lab = lab_by_hand(rgb.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy())
    lab = torch.from_numpy(lab).view(len(rgb), 24, 24, 3).permute(0, 3, 1, 2)
    made = replace(COLOURS, quantized=quantized)(packed, indices, SEED)
    torch.testing.assert_close(made.lightness.double(), lab[:, :1], rtol=0, atol=1e-3)
    torch.testing.assert_close(made.ab.double(), lab[:, 1:, ::3, ::3], rtol=0, atol=1e-3)
    assert torch.equal(made.labels, ab_labels(made.ab))
    split = replace(SPLIT, quantized=quantized)(packed, indices, SEED)
    assert torch.equal(split.lightness, made.lightness)
    assert torch.equal(split.ab[:, :, ::3, ::3], made.ab)
    assert torch.equal(split.ab_labels, made.labels)
    level = lab[:, 0, ::3, ::3] / 2
    sure = (level - level.round()).abs() > 1e-3
    assert torch.equal(split.lightness_labels[sure], level.floor().clamp(0, 49).long()[sure])
    white = SPLIT(torch.full((1, 3, 9, 9), 255, dtype=torch.uint8), torch.arange(1), 0)
    assert (white.lightness_labels == 49).all()
    assert (white.ab.abs() < 0.02).all()


def test_a_sample_is_the_same_in_any_batch():
    images, indices = batch(), torch.tensor([3, 1, 4, 10**12, 5, 9])
    for task in (COLOURS, SPLIT):
        made = task(images, indices, SEED)
        order = torch.tensor([4, 0, 3])
        packed = Packed.of([image.permute(1, 2, 0) for image in images[order]])
        for one, other in zip(made, task(packed, indices[order], SEED), strict=True):
            torch.testing.assert_close(one[order], other, rtol=0, atol=1e-4)
        narrow = task(images, indices, SEED, dtype=torch.bfloat16)
        assert narrow.lightness.dtype == narrow.ab.dtype == torch.bfloat16
        for one, other in zip(made, narrow, strict=True):
            if one.dtype == torch.int64:
                assert torch.equal(one, other)


def test_passes_through_compile():
    compiled = torch.compile(lambda *given: SPLIT(*given), fullgraph=True, backend="aot_eager")
    for seed in (1, 2, 2**64 - 1):
        whole, made = (
            SPLIT(batch(), torch.arange(6), seed),
            compiled(batch(), torch.arange(6), seed),
        )
        torch.testing.assert_close(made, whole, rtol=0, atol=1e-4)


def test_any_size():
    for side, stride in ((1, 1), (1, 4), (5, 4), (8, 3)):
        made = Colorization(View(side), stride)(batch(2), torch.arange(2), 0)
        assert made.lightness.shape == (2, 1, side, side)
        assert made.labels.shape == (2, -(-side // stride), -(-side // stride))


def test_tasks_are_data():
    for task in (COLOURS, SPLIT):
        assert task == eval(repr(task), {type(task).__name__: type(task), "View": View})


def test_errors():
    images, indices = batch(2), torch.arange(2)
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="stride must be a whole number"):
            Colorization(stride=bad)
        with pytest.raises(ValueError, match="bins must be a whole number"):
            SplitBrain(bins=bad)
    for task in (COLOURS, SPLIT):
        with pytest.raises(ValueError, match="images must have 3 channels"):
            task(batch(2, 1), indices, 0)
        with pytest.raises(ValueError, match="seed must lie in"):
            task(images, indices, 2**64)
        with pytest.raises(ValueError, match="indices must be int64"):
            task(images, indices[:1], 0)
        with pytest.raises(TypeError, match="dtype must be"):
            task(images, indices, 0, dtype=torch.float64)
        with pytest.raises(ValueError, match="none zero"):
            task(images[:0], indices[:0], 0)
    with pytest.raises(ValueError, match="ab must be float of shape"):
        ab_labels(torch.zeros(1, 3, 2, 2))
    for count in (0, 10):
        with pytest.raises(ValueError, match="neighbours must lie in"):
            soft_ab_labels(torch.zeros(1, 2, 1, 1), count)
    for bad in (0.0, math.nan):
        with pytest.raises(ValueError, match="sigma must be positive"):
            soft_ab_labels(torch.zeros(1, 2, 1, 1), 5, bad)
        with pytest.raises(ValueError, match="temperature must be positive"):
            decode_ab(torch.zeros(1, 313, 1, 1), bad)
    with pytest.raises(ValueError, match="logits must have shape"):
        decode_ab(torch.zeros(1, 300, 1, 1))
