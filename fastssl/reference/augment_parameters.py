"""The specification of what is drawn for a view: numbers that any device draws alike, bit by
bit."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.reference.philox import uniform

Range = tuple[float, float]


class Column(IntEnum):
    """The columns of a table of parameters, float32 [B, len(Column)]: a row says what is done to
    one view, in this order."""

    TOP = 0  # of the crop, in pixels
    LEFT = 1
    HEIGHT = 2
    WIDTH = 3
    FLIP = 4  # 1: left to right
    FLIP_VERTICAL = 5  # 1: upside down
    TURNS = 6  # quarter turns, counter-clockwise, 0 to 3
    ORDER = 7  # of the jitter, a row of ORDERS; -1: none
    BRIGHTNESS = 8  # factors
    CONTRAST = 9
    SATURATION = 10
    HUE = 11  # in turns, -1/2 to 1/2
    GREY = 12  # 1: to grey after the jitter; 2: before it
    SIGMA = 13  # of the blur, in pixels of the view; 0: none
    SOLARIZE = 14  # inverts what is not below, of 255; infinite: nothing
    ERASE_TOP = 15  # in pixels of the view
    ERASE_LEFT = 16
    ERASE_HEIGHT = 17  # 0: nothing
    ERASE_WIDTH = 18


class Chances(NamedTuple):
    """What a view's parameters are drawn from."""

    scale: Range = (1.0, 1.0)  # of the crop's area, share of the image's
    ratio: Range | None = None  # its width / height; None: the image's
    flip: float = 0.0  # probabilities
    flip_vertical: float = 0.0
    turn: float = 0.0  # of a quarter turn; one, two or three are alike
    jitter: float = 0.0
    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: Range = (0.0, 0.0)
    grey: float = 0.0
    grey_first: bool = False
    blur: float = 0.0
    sigma: Range = (0.1, 2.0)
    solarize: float = 0.0
    threshold: float = 128.0
    erase: float = 0.0
    erase_scale: Range = (0.02, 0.33)
    erase_ratio: Range = (0.3, 3.3)


# Where each draw finds its number: slots of Philox. Rectangles take two numbers a try, then two.
TRIES = 10
CROP, FLIP, FLIP_VERTICAL, TURN, TURNS, JITTER, ORDER = 0, 22, 23, 24, 25, 26, 27
FACTORS, GREY, BLUR, SIGMA, SOLARIZE, ERASE, ERASED = 28, 32, 33, 34, 35, 36, 37
SLOTS = ERASED + 2 * TRIES + 2


def augment_parameters(
    sizes: Tensor,  # int64 [B, 2]
    samples: Tensor,  # int64 [B]
    seed: int,
    view: int,
    size: tuple[int, int],
    chances: Chances,
) -> Tensor:
    """Parameters of a view of each sample, float32 [B, len(Column)], as torchvision distributes
    them.

    A row is a function of the seed, the sample, the view, the image's height and width and the
    chances; float64 arithmetic of +, −, ×, ÷ and √ alone, rounded once, makes it the same on every
    device.

    Args:
        sizes: heights and widths of the images.
        samples: each image's number in its set.
        seed: 0 to 2^64 − 1.
        view: which one it is.
        size: its height and width, in pixels.
        chances: probabilities and ranges.
    """
    u = uniform(seed, samples, view, SLOTS)  # [B, S]
    c = chances
    height, width = sizes.double().unbind(dim=1)
    high, wide = (torch.full_like(height, float(pixels)) for pixels in size)
    crop = _crop(u[:, CROP:FLIP], height, width, c.scale, c.ratio)
    patch = _patch(u[:, ERASED:SLOTS], high, wide, c.erase_scale, c.erase_ratio)
    factors = [
        low + (top - low) * u[:, FACTORS + n]
        for n, (low, top) in enumerate((c.brightness, c.contrast, c.saturation, c.hue))
    ]
    order = (24 * u[:, ORDER]).floor()
    sigma = c.sigma[0] + (c.sigma[1] - c.sigma[0]) * u[:, SIGMA]
    columns = [
        *crop,
        u[:, FLIP] < c.flip,
        u[:, FLIP_VERTICAL] < c.flip_vertical,
        torch.where(u[:, TURN] < c.turn, 1 + (3 * u[:, TURNS]).floor(), 0),
        torch.where(u[:, JITTER] < c.jitter, order, -1),
        *factors,
        torch.where(u[:, GREY] < c.grey, 2 if c.grey_first else 1, 0),
        torch.where(u[:, BLUR] < c.blur, sigma, 0),
        torch.where(u[:, SOLARIZE] < c.solarize, c.threshold, math.inf),
        *(torch.where(u[:, ERASE] < c.erase, part, 0) for part in patch),
    ]
    return torch.stack([column.float() for column in columns], dim=1)


def _crop(
    u: Tensor, height: Tensor, width: Tensor, scale: Range, ratio: Range | None
) -> tuple[Tensor, ...]:
    """RandomResizedCrop: ten tries; then the largest centred crop of a ratio that is allowed."""
    own = width / height
    proportion = own[:, None].expand(-1, TRIES) if ratio is None else _proportions(u, ratio)
    w, h = _tries(u, height * width, scale, proportion)  # [B, TRIES]
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    found, w, h = _first(fits, w, h)
    low, high = (0.0, math.inf) if ratio is None else ratio
    centred_h = torch.where(own < low, (width / low).round(), height)
    centred_w = torch.where(own > high, (height * high).round(), width)
    h = torch.where(found, h, centred_h.clamp(min=1))
    w = torch.where(found, w, centred_w.clamp(min=1))
    top = torch.where(found, _place(u[:, -2], height - h), ((height - h) / 2).floor())
    left = torch.where(found, _place(u[:, -1], width - w), ((width - w) / 2).floor())
    return top, left, h, w


def _patch(u: Tensor, height: Tensor, width: Tensor, scale: Range, ratio: Range) -> list[Tensor]:
    """RandomErasing: ten tries to find a patch smaller than the view; else none."""
    h, w = _tries(u, height * width, scale, _proportions(u, ratio))  # its ratio: height / width
    found, h, w = _first((h < height[:, None]) & (w < width[:, None]), h, w)
    top, left = _place(u[:, -2], height - h), _place(u[:, -1], width - w)
    return [torch.where(found, part, 0) for part in (top, left, h, w)]


def _proportions(u: Tensor, ratio: Range) -> Tensor:
    """A ratio for each try, its logarithm uniform, [B, TRIES]."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    return _exp(low + (high - low) * u[:, 1 : 2 * TRIES : 2])


def _tries(u: Tensor, area: Tensor, scale: Range, proportion: Tensor) -> tuple[Tensor, Tensor]:
    """Sides √(area · proportion) and √(area / proportion), rounded to pixels, each [B, TRIES]."""
    area = area[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, 0 : 2 * TRIES : 2])
    return (area * proportion).sqrt().round(), (area / proportion).sqrt().round()


def _first(fits: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
    """Whether any try fits, [B], and the sides of the first that does."""
    at = fits.int().argmax(dim=1, keepdim=True)  # the first of equals
    return fits.any(dim=1), *(side.gather(1, at).squeeze(1) for side in sides)


def _place(u: Tensor, room: Tensor) -> Tensor:
    """A whole number of 0 to ``room``, each as likely."""
    return (u * (room + 1)).floor()


def _exp(x: Tensor) -> Tensor:
    """e^x to 1e-15, |x| < 700, by additions and multiplications alone: no two libraries' exp agree
    in the last bit."""
    n = (x * (1 / math.log(2))).round()
    r = x - n * 0.693147180369123816490  # ln 2, its upper bits: the product is exact
    r = r - n * 1.90821492927058770002e-10
    power = torch.zeros_like(x)
    for k in range(14, -1, -1):
        power = power * r + 1 / math.factorial(k)
    return power * ((n.long() + 1023) << 52).view(torch.float64)  # · 2^n
