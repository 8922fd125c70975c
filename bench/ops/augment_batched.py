"""SimCLR's views of a batch in plain torch, all images at once: what ``torch.compile`` is given.

The reference takes an image at a time, each with shapes of its own, which no compiler makes quick.
Here what differs from image to image lies in tensors: sources of a resized pixel and their weights,
and at each place in the jitter's order a choice of its four steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.augment import Column
from fastssl.reference.augment import LUMA, ORDERS


def view(images: Tensor, p: Tensor, made: Any, number: int, dtype: torch.dtype) -> Tensor:
    """View ``number`` of the recipe ``made`` [B, 3, *size], of images uint8 [B, 3, H, W] and their
    rows of parameters [B, 19]: crop and resize, flip, jitter, grey, blur, normalise."""
    shape, taps = made.views[number].shape, made.views[number].blur_taps
    c = Column
    x = resized(images.float(), p[:, c.TOP], p[:, c.HEIGHT], shape[0])  # [B, T, 3, W]
    x = resized(
        x.permute(0, 2, 3, 1), p[:, c.LEFT], p[:, c.WIDTH], shape[1]
    )  # [B, W', 3, T]: turned
    x = x.permute(0, 2, 3, 1)
    x = torch.where(each(p[:, c.FLIP]) > 0, x.flip(3), x)
    x = torch.where(each(p[:, c.ORDER]) >= 0, jittered(x, p), x)
    x = torch.where(each(p[:, c.GREY]) > 0, grey(x).expand_as(x), x)
    if made.views[number].blur:
        x = torch.where(each(p[:, c.SIGMA]) > 0, blurred(x, p[:, c.SIGMA], taps), x)
    mean, std = (x.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (made.mean, made.std))
    return ((x / 255 - mean) / std).to(dtype)


def each(column: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return column.view(-1, 1, 1, 1)


def resized(x: Tensor, start: Tensor, extent: Tensor, pixels: int) -> Tensor:
    """Rows ``start …`` of [B, C, H, W] as so many rows, [B, pixels, C, W]: a triangle of weights as
    wide as a pixel of the coarser of the two."""
    scale = (extent / pixels)[:, None]  # [B, 1]
    reach = scale.clamp(min=1)
    centre = scale * (torch.arange(pixels, device=x.device) + 0.5)  # [B, pixels]
    first, last = (centre - reach + 0.5).floor().clamp(min=0), (centre + reach + 0.5).floor()
    most = 2 * math.ceil(max(1.0, x.shape[2] / pixels)) + 1  # sources of a pixel
    source = first[..., None] + torch.arange(most, device=x.device)  # [B, pixels, K]
    near = (1 - ((source + 0.5 - centre[..., None]) / reach[..., None]).abs()).clamp(min=0)
    inside = (source < last[..., None]) & (source < extent[:, None, None])
    weights = torch.where(inside, near, 0)
    weights = weights / weights.sum(2, keepdim=True)
    place = (start[:, None, None] + source).clamp(max=x.shape[2] - 1).long()
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return (weights[..., None, None] * x.transpose(1, 2)[batch, place]).sum(2)


def jittered(x: Tensor, p: Tensor) -> Tensor:
    c = Column
    orders = torch.tensor(ORDERS, device=x.device)[p[:, c.ORDER].long().clamp(min=0)]  # [B, 4]
    brightness, contrast, saturation = (
        each(p[:, column]) for column in (c.BRIGHTNESS, c.CONTRAST, c.SATURATION)
    )
    for place in range(4):
        step, colourless = each(orders[:, place]), grey(x)
        by_contrast = blend(x, colourless.mean((1, 2, 3), keepdim=True), contrast)
        steps = (blend(x, 0.0, brightness), by_contrast, blend(x, colourless, saturation))
        x = torch.where(step == 3, turned_hue(x / 255, each(p[:, c.HUE])[:, 0]) * 255, x)
        for number, result in enumerate(steps):
            x = torch.where(step == number, result, x)
    return x


def blend(x: Tensor, other: Tensor | float, share: Tensor) -> Tensor:
    return (share * x + (1 - share) * other).clamp(0, 255)


def grey(x: Tensor) -> Tensor:
    """[B, 1, H, W]."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def turned_hue(x: Tensor, turn: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1], its hue (of HSV) moved by ``turn`` [B, 1, 1] whole turns."""
    red, green, blue = x.unbind(1)
    low, high = x.amin(1), x.amax(1)
    chroma = high - low
    some = torch.where(chroma == 0, 1, chroma)
    by_blue = torch.where(high == green, (blue - red) / some + 2, (red - green) / some + 4)
    sixths = torch.where(high == red, (green - blue) / some, by_blue) + 6 * turn

    def level(offset: int) -> Tensor:
        k = (sixths + offset) % 6
        return high - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([level(5), level(3), level(1)], 1)


def blurred(x: Tensor, sigma: Tensor, taps: int) -> Tensor:
    radius = taps // 2
    offset = torch.arange(-radius, radius + 1, device=x.device)
    wide = torch.where(sigma > 0, sigma, 1)[:, None]
    weights = torch.softmax(-((offset / wide) ** 2) / 2, dim=1)  # [B, taps]
    height, width = x.shape[2:]
    x = F.pad(x, [radius] * 4, mode="reflect")
    x = sum(each(weights[:, k]) * x[:, :, :, k : k + width] for k in range(taps))
    return sum(each(weights[:, k]) * x[:, :, k : k + height] for k in range(taps))
