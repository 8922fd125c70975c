"""Views of images, in plain torch: ``views = recipe(images, indices, seed)``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.data.random import mix, uniform

BEND, NOISE = range(1, 3)  # what a view's seed is for beside the numbers every pixel shares
BEND_NODES = 4  # a side
LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Recipe:
    """How to make random views of an image. Every number at its default leaves the image alone.

    ``recipe(images, indices, seed)`` gives one batch of views for each of ``views``. What happens
    to a sample is a function of (seed, its index, the view), whatever batch it comes in, on every
    device: with a seed for each epoch, training is repeatable and resumes exactly.

    A later fused operation may replace this class behind the same call.
    """

    views: int = 2
    size: float = 1.0  # side of the views, share of the images'
    scale: tuple[float, float] = (1.0, 1.0)  # area of the crop; above 1 the image shrinks
    ratio: tuple[float, float] = (1.0, 1.0)  # width / height of the crop
    shift: float = 0.0  # of the crop's centre beyond what keeps it inside, share of the half side
    rotate: float = 0.0  # degrees, either way
    shear: float = 0.0  # degrees, either way, along x and along y
    bend: float = 0.0  # displacement of the nodes of a smooth field, at most, share of half a side
    flip: float = 0.0  # probability, left to right
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness … hue
    jitter_p: float = 1.0
    grey: float = 0.0  # probability
    blur: float = 0.0  # probability; σ in 0.1 to 2 pixels at 224, less on smaller images
    solarize: float = 0.0  # probability: the brighter half of the range is inverted
    gamma: float = 0.0  # x^γ, ln γ at most this, either way: fuller or thinner strokes
    soften: float = 0.0  # share of a 3×3 mean at most; the other way, sharper, half as much
    noise: float = 0.0  # white; its standard deviation is drawn for each sample, at most this
    erase: float = 0.0  # probability of a square of zeros
    erase_side: tuple[float, float] = (0.2, 0.4)  # share of the side
    mean: float = 0.5
    std: float = 0.5

    def __call__(self, images: Tensor, indices: Tensor, seed: int) -> list[Tensor]:
        """Random views of images.

        Args:
            images: uint8, shape [B, C, H, W], C = 1 or 3.
            indices: int64, shape [B]: each sample's number in its set, on the images' device.
            seed: any integer; another gives other views.

        Returns:
            ``views`` tensors, float32, shape [B, C, H, W] times ``size``, normalised.
        """
        return MultiCrop((self,))(images, indices, seed)

    def normalize(self, x: Tensor) -> Tensor:
        """``(x − mean)/std`` of pixels in [0, 1]: how an encoder takes an image as it is."""
        return (x - self.mean) / self.std

    def view(self, x: Tensor, indices: Tensor, seed: int) -> Tensor:
        """One view of pixels in [0, 1], float32, shape [B, C, H, W]."""
        u = _columns(uniform(seed, indices, 24))
        x = self._warp(x, u, indices, seed)
        if any(self.jitter):
            x = torch.where(_choose(u, self.jitter_p), self._jitter(x, u), x)
        if self.grey and x.shape[1] == 3:
            x = torch.where(_choose(u, self.grey), luma(x).expand_as(x), x)
        if self.blur:
            x = torch.where(_choose(u, self.blur), self._blur(x, u), x)
        if self.solarize:
            inverted = torch.where(x < 128 / 255, x, 1 - x)
            x = torch.where(_choose(u, self.solarize), inverted, x)
        if self.gamma:
            x = x.clamp(min=1e-4) ** _pixelwise(_between(u, -self.gamma, self.gamma).exp())
        if self.soften:
            share = _pixelwise(_between(u, -self.soften / 2, self.soften))
            mean = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, stride=1)
            x = torch.lerp(x, mean, share).clamp(0, 1)
        if self.noise:
            deviation = _pixelwise(_between(u, 0, self.noise))
            white = uniform(mix(seed, NOISE), indices, x[0].numel()).view_as(x)
            x = x + deviation * (2 * white - 1) * math.sqrt(3)
        if self.erase:
            x = x.masked_fill(_choose(u, self.erase) & self._square(x, u), 0)
        return self.normalize(x)

    def _warp(self, x: Tensor, u: Iterator[Tensor], indices: Tensor, seed: int) -> Tensor:
        """Crop, shift, rotate, shear, flip and bend: one bilinear sampling."""
        area = _between(u, *self.scale)
        aspect = _between(u, *(math.log(r) for r in self.ratio)).exp()
        half_width, half_height = (area * aspect).sqrt(), (area / aspect).sqrt()
        if self.scale[1] <= 1:
            half_width, half_height = half_width.clamp(max=1), half_height.clamp(max=1)
        centre_x = _between(u, -1, 1) * ((1 - half_width).abs() + self.shift)
        centre_y = _between(u, -1, 1) * ((1 - half_height).abs() + self.shift)
        angle = torch.deg2rad(_between(u, -self.rotate, self.rotate))
        shear_x = torch.deg2rad(_between(u, -self.shear, self.shear)).tan()
        shear_y = torch.deg2rad(_between(u, -self.shear, self.shear)).tan()
        mirror = 1 - 2 * (next(u) < self.flip).float()
        cos, sin = angle.cos(), angle.sin()
        # rotation · shear · scale, from the view's coordinates to the image's, both in [−1, 1]
        rows = [
            (cos - sin * shear_y) * half_width * mirror,
            (cos * shear_x - sin) * half_height,
            centre_x,
            (sin + cos * shear_y) * half_width * mirror,
            (sin * shear_x + cos) * half_height,
            centre_y,
        ]
        theta = torch.stack(rows, dim=1).view(-1, 2, 3)
        side = [round(pixels * self.size) for pixels in x.shape[2:]]
        grid = F.affine_grid(theta, [*x.shape[:2], *side], align_corners=False)
        if self.bend:
            slots = 2 * BEND_NODES**2
            nodes = uniform(mix(seed, BEND), indices, slots).view(-1, 2, BEND_NODES, BEND_NODES)
            field = (2 * nodes - 1) * self.bend
            field = F.interpolate(field, side, mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        inside = self.scale[1] <= 1 and not (self.shift or self.rotate or self.shear or self.bend)
        beyond = "border" if inside else "zeros"  # a crop's own edge, or the black around a digit
        return F.grid_sample(x, grid, mode="bilinear", padding_mode=beyond, align_corners=False)

    def _jitter(self, x: Tensor, u: Iterator[Tensor]) -> Tensor:
        """Brightness, contrast, saturation and hue, in this order."""
        brightness, contrast, saturation, hue = self.jitter
        factor = [
            _pixelwise(_between(u, max(0.0, 1 - v), 1 + v))
            for v in (brightness, contrast, saturation)
        ]
        turn = _between(u, -hue, hue)
        x = (x * factor[0]).clamp(0, 1)
        x = torch.lerp(luma(x).mean(dim=(2, 3), keepdim=True).expand_as(x), x, factor[1])
        x = x.clamp(0, 1)
        if x.shape[1] == 3:
            x = torch.lerp(luma(x).expand_as(x), x, factor[2]).clamp(0, 1)
            if hue:
                x = turned_hue(x, turn)
        return x

    def _blur(self, x: Tensor, u: Iterator[Tensor]) -> Tensor:
        """A Gaussian of a σ for each sample, over a tenth of the image's side, as in SimCLR."""
        batch, channels, height, width = x.shape
        side = height / self.size
        radius = min(max(1, round(0.05 * side)), height - 1, width - 1)
        sigma = _between(u, 0.1, 2.0) * max(side / 224, 0.25)
        offset = torch.arange(-radius, radius + 1, device=x.device)
        taps = torch.softmax(-((offset / sigma[:, None]) ** 2) / 2, dim=1)  # [B, 2r + 1]
        taps = taps.repeat_interleave(channels, dim=0)[:, None]  # [B·C, 1, 2r + 1]
        flat = F.pad(x.reshape(1, -1, height, width), [radius] * 4, mode="reflect")
        flat = F.conv2d(flat, taps[:, :, None, :], groups=batch * channels)
        flat = F.conv2d(flat, taps[:, :, :, None], groups=batch * channels)
        return flat.view_as(x)

    def _square(self, x: Tensor, u: Iterator[Tensor]) -> Tensor:
        """bool [B, 1, H, W]: inside a square that lies anywhere in the image."""
        side = _between(u, *self.erase_side)[:, None]
        spans = []
        for pixels in x.shape[2:]:
            low = next(u)[:, None] * (1 - side)
            place = (torch.arange(pixels, device=x.device) + 0.5) / pixels
            spans.append((place >= low) & (place < low + side))
        return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


@dataclass(frozen=True)
class MultiCrop:
    """The views of several recipes, one after the other, under :class:`Recipe`'s call.

    ``MultiCrop((large, small))``, with 2 and 6 ``views`` of another ``size`` and ``scale``, is the
    multi-crop of SwAV; two recipes of one view each are BYOL's unequal views.
    """

    recipes: tuple[Recipe, ...]  # of one mean and std

    @property
    def views(self) -> int:
        """How many there are in all."""
        return len(self._each)

    @property
    def mean(self) -> float:
        return self.recipes[0].mean

    @property
    def std(self) -> float:
        return self.recipes[0].std

    def __call__(self, images: Tensor, indices: Tensor, seed: int) -> list[Tensor]:
        """Random views, as of :class:`Recipe`: those of the first recipe stand first."""
        pixels = images.float() / 255
        return [r.view(pixels, indices, mix(seed, v)) for v, r in enumerate(self._each)]

    def normalize(self, x: Tensor) -> Tensor:
        """As of :class:`Recipe`."""
        return self.recipes[0].normalize(x)

    @property
    def _each(self) -> list[Recipe]:
        return [recipe for recipe in self.recipes for _ in range(recipe.views)]


Views = Recipe | MultiCrop


def luma(x: Tensor) -> Tensor:
    """Grey [B, 1, H, W] of [B, C, H, W], C = 1 or 3."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def turned_hue(x: Tensor, turn: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1] with its hue (of HSV) moved by ``turn``, [B], in whole turns."""
    high, low = x.amax(dim=1), x.amin(dim=1)  # [B, H, W]
    chroma = (high - low).clamp(min=1e-12)
    red, green, blue = x.unbind(dim=1)
    sixth = torch.where(
        high == red,
        (green - blue) / chroma,
        torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    sixth = sixth + 6 * turn[:, None, None]
    # each channel is a trapezium in the hue, a third of a turn apart
    shifted = (sixth[:, None] + torch.tensor([5.0, 3.0, 1.0], device=x.device).view(3, 1, 1)) % 6
    trapezium = torch.minimum(shifted, 4 - shifted).clamp(0, 1)
    return high[:, None] - (high - low)[:, None] * trapezium


def _columns(u: Tensor) -> Iterator[Tensor]:
    return iter(u.unbind(dim=1))


def _between(u: Iterator[Tensor], low: float, high: float) -> Tensor:
    return low + (high - low) * next(u)


def _choose(u: Iterator[Tensor], probability: float) -> Tensor:
    return _pixelwise(next(u) < probability)


def _pixelwise(x: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return x[:, None, None, None]
