"""What is drawn against torchvision's own samplers: numbers by themselves and together, over
samples, views and seeds. Seeds are fixed; a p-value below LEVEL says that distributions differ."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from scipy import stats

from fastssl.augment import Column, View
from fastssl.reference.augment import ORDERS
from fastssl.reference.augment_parameters import SLOTS, augment_parameters
from fastssl.reference.philox import uniform
from tests.compat.agreement import peer

MINE, THEIRS, LEVEL = 20_000, 2_000, 1e-4
C = Column


def drawn(view, size=(64, 64), count=MINE, seed=3, number=0):
    """Columns of parameters, float64 [19, count]."""
    sizes = torch.tensor([size]).expand(count, 2)
    indices = torch.arange(count)
    return augment_parameters(sizes, indices, seed, number, view.shape, view.chances).double().T


def theirs(transform, size, count=THEIRS):
    """What torchvision draws for images of that size."""
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    return [transform.make_params([image]) for _ in range(count)]


def columns(made, *keys):
    return torch.tensor([[float(one[key]) for one in made] for key in keys], dtype=torch.float64)


def distance(a, b, whole=False):
    """The p-value of Kolmogorov and Smirnov that two samples are of one distribution. Whole numbers
    have ties, which noise below a half breaks for both alike."""
    if whole:
        g = torch.Generator().manual_seed(1)
        a, b = (x + 0.98 * (torch.rand(x.shape, generator=g) - 0.5) for x in (a, b))
    return stats.ks_2samp(a.numpy(), b.numpy()).pvalue


def parted(x, parts=2):
    """Which part of its distribution a number lies in, int64."""
    if x.unique().numel() <= parts:
        return x.unique(return_inverse=True)[1]
    ends = x.quantile(torch.arange(1, parts).double() / parts)
    return torch.bucketize(x.contiguous(), ends)


def independent(a, b, parts=2):
    """The p-value that two columns, parted, say nothing of each other, by how often parts meet."""
    meet = (a * parts + b).bincount(minlength=parts**2).view(parts, parts)
    return stats.chi2_contingency(meet.numpy()).pvalue


def even(counts):
    return stats.chisquare(counts.numpy()).pvalue


RECTANGLES = [  # size of the image, scale, ratio
    ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
    ((375, 500), (0.05, 0.14), (3 / 4, 4 / 3)),
    ((20, 300), (0.08, 1.0), (3 / 4, 4 / 3)),  # often no try fits
    ((9, 7), (0.2, 0.9), (0.2, 5.0)),
    ((50, 60), (0.9, 1.0), (0.1, 0.4)),  # never: the middle, as wide as the image
    ((60, 50), (0.9, 1.0), (2.0, 3.0)),
    ((40, 70), (0.3, 0.3), (1.0, 1.0)),
]


@pytest.mark.parametrize(("size", "scale", "ratio"), RECTANGLES)
def test_crops(size, scale, ratio):
    """Each number, and sums, differences and products of two."""
    v2 = peer("torchvision.transforms.v2", "torchvision")
    made = theirs(v2.RandomResizedCrop(64, scale=scale, ratio=ratio), size)
    other, mine = (
        columns(made, "top", "left", "height", "width"),
        drawn(View(64, scale, ratio), size),
    )
    for i in range(4):
        assert distance(mine[i], other[i], whole=True) > LEVEL
    for combine in (torch.mul, torch.add, torch.sub):
        for i, j in ((2, 3), (0, 2), (1, 3), (0, 1)):
            pair = combine(mine[i], mine[j]), combine(other[i], other[j])
            assert distance(*pair, whole=True) > LEVEL


@pytest.mark.parametrize("size", [(224, 224), (10, 40)], ids=str)
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.3, 0.9), (0.4, 2.0)), ((0, 0.01), (1, 1))]
)
def test_patches(size, scale, ratio):
    v2 = peer("torchvision.transforms.v2", "torchvision")
    made = theirs(v2.RandomErasing(scale=scale, ratio=ratio), size)
    view = View(size, erase=1.0, erase_scale=scale, erase_ratio=ratio)
    mine, other = drawn(view)[C.ERASE_TOP :], columns(made, "i", "j", "h", "w")
    found = []
    for top, left, height, width in (mine, other):
        # Where ten tries fail torchvision puts all of the image in its own place, which is nothing.
        there = (height * width > 0) & (height * width < size[0] * size[1])
        found.append(torch.stack([top, left, height, width, height * width])[:, there])
    counts = [
        [x.shape[1], len(of) - x.shape[1]] for x, of in zip(found, (mine[0], other[0]), strict=True)
    ]
    if any(lost for _, lost in counts):
        assert stats.chi2_contingency(counts).pvalue > LEVEL
    for a, b in zip(*found, strict=True):
        assert distance(a, b, whole=True) > LEVEL


@pytest.mark.parametrize(
    "jitter",
    [
        {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
        {"brightness": 1.5, "contrast": (0.5, 0.6), "saturation": (1.0, 4.0), "hue": (0.1, 0.4)},
    ],
)
def test_jitter_and_blur(jitter):
    v2 = peer("torchvision.transforms.v2", "torchvision")
    made = theirs(v2.ColorJitter(**jitter), (8, 8), 5_000)
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    mine = drawn(View(64, jitter=1.0, blur=1.0, sigma=(0.3, 1.7), **jitter))
    for a, b in zip(mine[C.BRIGHTNESS : C.GREY], columns(made, *names), strict=True):
        assert distance(a, b) > LEVEL
    orders = mine[C.ORDER].long().bincount(minlength=24)
    places = [ORDERS.index(tuple(one["fn_idx"].tolist())) for one in made]
    counts = torch.stack([orders, torch.tensor(places).bincount(minlength=24)])
    assert stats.chi2_contingency(counts.numpy()).pvalue > LEVEL
    blurs = theirs(v2.GaussianBlur(5, (0.3, 1.7)), (8, 8))
    right = torch.tensor([one["sigma"][0] for one in blurs], dtype=torch.float64)
    assert distance(mine[C.SIGMA], right) > LEVEL


HAPPENS = {
    "flip": lambda p: p[C.FLIP] == 1,
    "flip_vertical": lambda p: p[C.FLIP_VERTICAL] == 1,
    "turn": lambda p: p[C.TURNS] > 0,
    "jitter": lambda p: p[C.ORDER] >= 0,
    "grey": lambda p: p[C.GREY] == 1,
    "blur": lambda p: p[C.SIGMA] > 0,
    "solarize": lambda p: p[C.SOLARIZE] == 128,
    "erase": lambda p: p[C.ERASE_HEIGHT] > 0,
}
EVERYTHING = View(
    64, (0.08, 1.0), (3 / 4, 4 / 3), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1,
    **dict.fromkeys(HAPPENS, 0.5),
)  # fmt: skip


@pytest.mark.parametrize("name", HAPPENS)
def test_probabilities(name):
    """As often as they should; at 0 never, and always at 1. Of turns one, two or three alike."""
    for chance in (0.0, 0.03, 0.5, 0.97, 1.0):
        p = drawn(replace(EVERYTHING, **{name: chance}))
        count = int(HAPPENS[name](p).sum())
        assert chance not in (0.0, 1.0) or count == chance * MINE
        assert stats.binomtest(count, MINE, chance).pvalue > LEVEL
        if name == "turn" and chance > 0:
            assert even(p[C.TURNS].long().bincount(minlength=4)[1:]) > LEVEL


def numbers(p):
    """What happens, and how much of it, parted."""
    made = {name: of(p).double() for name, of in HAPPENS.items()}
    area, shape = p[C.HEIGHT] * p[C.WIDTH], p[C.WIDTH] / p[C.HEIGHT]
    rest = {"area": area, "shape": shape, "brightness": p[C.BRIGHTNESS], "contrast": p[C.CONTRAST]}
    made |= rest | {"saturation": p[C.SATURATION], "hue": p[C.HUE]}
    return {name: parted(x) for name, x in made.items()}


def test_no_number_says_anything_of_another():
    """Within a view, of another view of the sample, of the next sample, of the next seed."""
    one = numbers(drawn(EVERYTHING))
    names = [pair for pair in itertools.combinations(one, 2) if pair != ("area", "shape")]
    values = [independent(one[a], one[b]) for a, b in names]
    others = {
        "view": numbers(drawn(EVERYTHING, number=1)),
        "seed": numbers(drawn(EVERYTHING, seed=4)),
        "sample": {name: x.roll(1) for name, x in one.items()},
    }
    for other in others.values():
        values += [independent(one[a], other[b]) for a in one for b in other]
    # Of as many p-values the least is as large as that, but for once in ten thousand times.
    assert len(values) > 600
    assert min(values) > LEVEL / len(values)
    assert stats.kstest(values, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("over", ["samples", "seeds", "views", "slots"])
def test_numbers_are_uniform(over):
    """Along each of what they are a function of, while the others stand still."""
    count = 2_500
    if over == "samples":
        u = uniform(7, torch.arange(count), 0, 3)
    elif over == "seeds":
        u = torch.cat([uniform(seed, torch.tensor([5]), 0, 3) for seed in range(count)])
    elif over == "views":
        u = torch.cat([uniform(7, torch.tensor([5]), view, 3) for view in range(count)])
    else:
        u = uniform(7, torch.arange(3), 0, count).T
    assert count > SLOTS
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > LEVEL
        assert even((256 * column).long().bincount(minlength=256)) > LEVEL
        lower = (column * 2**32).long() & 255  # the last bits as well
        assert even(lower.bincount(minlength=256)) > LEVEL
        eighths = parted(column, 8)
        assert independent(eighths[1:], eighths[:-1], 8) > LEVEL
    assert independent(parted(u[:, 0], 8), parted(u[:, 1], 8), 8) > LEVEL


def test_the_tests_tell():
    """Samplers that are slightly wrong are found."""
    v2 = peer("torchvision.transforms.v2", "torchvision")
    made = theirs(v2.RandomResizedCrop(64), (375, 500))
    other = columns(made, "top", "left", "height", "width")
    wrong = drawn(View(64, (0.12, 1.0), (3 / 4, 4 / 3)), (375, 500))
    assert distance(wrong[2], other[2], whole=True) < LEVEL
    right = drawn(View(64, (0.08, 1.0), (3 / 4, 4 / 3)), (375, 500))
    crossed = right[2] * right[3].roll(1)  # each alone is right, not so the two
    assert distance(crossed, other[2] * other[3], whole=True) < LEVEL
    assert stats.binomtest(int(0.52 * MINE), MINE, 0.5).pvalue < LEVEL
    x = torch.rand(MINE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert independent(parted(x), parted((x + x.roll(1)) % 1)) > LEVEL
    assert independent(parted(x), parted(x + 4 * x.roll(1))) < LEVEL
    assert even(torch.tensor([5_000, 5_000, 5_400])) < LEVEL
