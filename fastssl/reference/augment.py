"""The specification of ``augment``: torchvision's arithmetic, an image at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.reference.augment_parameters import Column

LUMA = (0.2989, 0.587, 0.114)
ORDERS = tuple(itertools.permutations(range(4)))  # of brightness, contrast, saturation and hue


def augment(
    images: Sequence[Tensor],  # B of uint8 [C, H, W]
    parameters: Tensor,  # float32 [B, len(Column)]
    size: tuple[int, int],
    taps: int,
    mean: Sequence[float],
    std: Sequence[float],
    quantized: bool,
) -> Tensor:
    """A view of each image: what its row of parameters says, then ``(x / 255 − mean) / std``.

    In this order: crop and bilinear resize (antialiased, align_corners=False), flips, quarter
    turns, jitter in the row's order, grey, blur by ``taps`` taps with reflection, solarize,
    normalise, erase (to zero). Where ``quantized``, pixels are whole numbers of 0 to 255 after each
    of these, as in torchvision on uint8 tensors: the resize bit by bit, the others but for what
    float32 rounds (a unit where a number falls on the other side of a whole one). Else they are
    float32, as in torchvision on float tensors.

    Args:
        images: B of them, C = 1 or 3; H and W may differ.
        parameters: see :class:`Column`.
        size: height and width of the views.
        taps: odd, at most twice the size less one.
        mean: C numbers, of pixels in [0, 1].
        std: C numbers.
        quantized: whether in whole numbers.

    Returns:
        float32, shape [B, C, *size].
    """
    views = [
        _view(image, dict(zip(Column, row, strict=True)), size, taps, quantized)
        for image, row in zip(images, parameters.tolist(), strict=True)
    ]
    x = torch.stack(views) / 255  # [B, C, *size]
    channel = (1, -1, 1, 1)
    x = (x - x.new_tensor(mean).view(channel)) / x.new_tensor(std).view(channel)
    for view, row in zip(x, parameters.tolist(), strict=True):
        top, left = int(row[Column.ERASE_TOP]), int(row[Column.ERASE_LEFT])
        height, width = int(row[Column.ERASE_HEIGHT]), int(row[Column.ERASE_WIDTH])
        view[:, top : top + height, left : left + width] = 0
    return x


def _view(
    image: Tensor, p: dict[Column, float], size: tuple[int, int], taps: int, quantized: bool
) -> Tensor:
    """[C, *size], in units of 1/255."""
    c = Column
    rounded = torch.round if quantized else _as_it_is
    cut = torch.floor if quantized else _as_it_is
    x = _resized(image, p, size, quantized)
    if p[c.FLIP]:
        x = x.flip(2)
    if p[c.FLIP_VERTICAL]:
        x = x.flip(1)
    x = x.rot90(int(p[c.TURNS]), (1, 2))
    if p[c.GREY] == 2:
        x = cut(grey(x)).expand_as(x)
    if p[c.ORDER] >= 0:
        for step in ORDERS[int(p[c.ORDER])]:
            if step == 0:
                x = cut(_blend(x, 0.0, p[c.BRIGHTNESS]))
            elif step == 1:
                x = cut(_blend(x, cut(grey(x)).mean(), p[c.CONTRAST]))
            elif step == 2 and len(x) == 3:
                x = cut(_blend(x, cut(grey(x)), p[c.SATURATION]))
            elif step == 3 and len(x) == 3 and p[c.HUE]:
                x = turned_hue(x / 255, p[c.HUE])
                x = cut(x * (256 - 1e-3)) if quantized else x * 255
    if p[c.GREY] == 1:
        x = cut(grey(x)).expand_as(x)
    if p[c.SIGMA]:
        x = rounded(_blurred(x, p[c.SIGMA], taps))
    return torch.where(x >= p[c.SOLARIZE], 255 - x, x)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _resized(
    image: Tensor, p: dict[Column, float], size: tuple[int, int], quantized: bool
) -> Tensor:
    top, left = int(p[Column.TOP]), int(p[Column.LEFT])
    height, width = int(p[Column.HEIGHT]), int(p[Column.WIDTH])
    x = image[:, top : top + height, left : left + width]
    if quantized:
        x = _resampled(x.long(), size[1])
        return _resampled(x.mT, size[0]).mT.float()
    if (height, width) == tuple(size):
        return x.float()
    return F.interpolate(
        x[None].float(), size, mode="bilinear", align_corners=False, antialias=True
    )[0]


def _resampled(x: Tensor, pixels: int) -> Tensor:
    """int64 [C, H, W] of 0 to 255, its rows resized to so many: fixed-point, weights of 15 bits, as
    torch has it."""
    if x.shape[2] == pixels:
        return x
    weights = _triangles(x.shape[2], pixels).to(x.device)
    bits = 0  # after the point: as many as keep the weights below 2^15
    while bits < 22 and int(0.5 + float(weights.max()) * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = (weights * 2**bits + 0.5).floor()
    sums = (x.double() @ whole.T).long()  # [C, H, pixels], exact
    return ((sums + 2 ** (bits - 1)) >> bits).clamp(0, 255)


def _triangles(source: int, target: int) -> Tensor:
    """Each target pixel's weights of the source's, float64 [target, source]: a triangle as wide as
    a pixel of the coarser of the two, to either side of its centre."""
    scale = source / target
    reach = max(scale, 1.0)
    centre = scale * (torch.arange(target, dtype=torch.float64) + 0.5)[:, None]
    pixel = torch.arange(source)
    first, last = (centre - reach + 0.5).long(), (centre + reach + 0.5).long()
    height = (1 - ((pixel + 0.5 - centre) / reach).abs()).clamp(min=0)
    weights = torch.where((pixel >= first) & (pixel < last), height, 0)
    return weights / weights.sum(dim=1, keepdim=True)


def _blend(x: Tensor, other: Tensor | float, share: float) -> Tensor:
    """``share · x + (1 − share) · other``, within [0, 255]."""
    other = torch.as_tensor(other, dtype=x.dtype, device=x.device)
    # in one rounding where the processor has it, as torchvision's: whole numbers are cut off below
    return (share * x).add(other, alpha=1 - share).clamp(0, 255)


def grey(x: Tensor) -> Tensor:
    """[1, H, W] of [C, H, W], C = 1 or 3."""
    if len(x) == 1:
        return x
    red, green, blue = x
    return (LUMA[0] * red).add(green, alpha=LUMA[1]).add(blue, alpha=LUMA[2])[None]


def turned_hue(x: Tensor, turn: float) -> Tensor:
    """[3, H, W] in [0, 1], its hue (of HSV) moved by ``turn`` whole turns."""
    low, high = x.aminmax(dim=0)
    chroma = high - low
    red, green, blue = (high - x) / torch.where(chroma == 0, 1, chroma)  # how far below
    sixths = torch.where(
        high == x[0],
        blue - green,
        torch.where(high == x[1], red + 2 - blue, green + 4 - red),
    )
    hue = ((sixths * (1 / 6) + 1) % 1 + turn) % 1
    saturation = chroma / torch.where(chroma == 0, 1, high)
    sector = (6 * hue).floor()  # 0 from red to yellow, 1 from there to green, …
    beyond = 6 * hue - sector
    flat = (1 - saturation) * high
    falling = (1 - saturation * beyond) * high
    rising = (saturation * beyond + (1 - saturation)) * high
    levels = torch.stack([high, flat, falling, rising]).clamp(0, 1)  # [4, H, W]
    return levels.gather(0, SECTORS.to(x.device)[:, sector.long() % 6])


# Of red, green and blue in each sector: high, flat, falling or rising.
SECTORS = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]])


def _blurred(x: Tensor, sigma: float, taps: int) -> Tensor:
    radius = taps // 2
    offset = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    weights = torch.softmax(-((offset / sigma) ** 2) / 2, dim=0)
    x = F.pad(x[:, None], [radius] * 4, mode="reflect")  # [C, 1, H + 2r, W + 2r]
    x = F.conv2d(x, weights.view(1, 1, 1, -1))
    return F.conv2d(x, weights.view(1, 1, -1, 1))[:, 0]
