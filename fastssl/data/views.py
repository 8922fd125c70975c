"""Views of images: ``views = recipe(images, indices, seed)``; of strokes, in plain torch, and of
photographs, by fastssl.augment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import augment, backends
from fastssl.data.random import mix, uniform
from fastssl.errors import UserError

BEND, NOISE = range(1, 3)  # what a view's seed is for beside the numbers every pixel shares
BEND_NODES = 4  # a side


@dataclass(frozen=True)
class Recipe:
    """How to make random views of a drawing. Every number at its default leaves the image alone.

    ``recipe(images, indices, seed)`` gives one batch of views for each of ``views``. What happens
    to a sample is a function of (seed, its index, the view), whatever batch it comes in, on every
    device: with a seed for each epoch, training is repeatable and resumes exactly.
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

    def denormalize(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] again."""
        return x * self.std + self.mean

    def gentle(self, area: float | None = None) -> Recipe:
        """One view, of the crops, shifts, turns and flips alone; of at least so much of the image's
        area, where that is given."""
        kept = ("scale", "ratio", "shift", "rotate", "shear", "flip", "mean", "std")
        made = Recipe(views=1, **{name: getattr(self, name) for name in kept})
        return made if area is None else replace(made, scale=_from(area, self.scale))

    def view(self, x: Tensor, indices: Tensor, seed: int) -> Tensor:
        """One view of pixels in [0, 1], float32, shape [B, C, H, W]."""
        u = _columns(uniform(seed, indices, 24))
        x = self._warp(x, u, indices, seed)
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

    def __call__(self, images: Tensor, indices: Tensor, seed: int) -> list[Tensor]:
        """Random views, as of :class:`Recipe`: those of the first recipe stand first."""
        pixels = images.float() / 255
        return [r.view(pixels, indices, mix(seed, v)) for v, r in enumerate(self._each)]

    def normalize(self, x: Tensor) -> Tensor:
        """As of :class:`Recipe`."""
        return self.recipes[0].normalize(x)

    def denormalize(self, x: Tensor) -> Tensor:
        """As of :class:`Recipe`."""
        return self.recipes[0].denormalize(x)

    def gentle(self, area: float | None = None) -> Recipe:
        """As of :class:`Recipe`, the first one's."""
        return self.recipes[0].gentle(area)

    @property
    def _each(self) -> list[Recipe]:
        return [recipe for recipe in self.recipes for _ in range(recipe.views)]


@dataclass(frozen=True)
class PhotoViews:
    """Views of photographs by a recipe of :mod:`fastssl.augment`, under :class:`Recipe`'s call.

    Where no kernel serves the images' device they are made on the CPU, and moved.
    """

    recipe: augment.Recipe
    channels_last: bool = False

    @property
    def views(self) -> int:
        """How many there are in all."""
        return len(self.recipe.views)

    def __call__(self, images: Tensor | augment.Packed, indices: Tensor, seed: int) -> list[Tensor]:
        """Random views, as of :class:`Recipe`, each of the size that the recipe says; of images of
        any sizes, packed, on their device whatever serves it."""
        device = images.device
        if isinstance(images, Tensor) and backends.select("augment", device.type) == "reference":
            images, indices = images.cpu(), indices.cpu()
        views = self.recipe(images, indices, seed % 2**64, channels_last=self.channels_last)
        return [view.to(device) for view in views]

    def normalize(self, x: Tensor) -> Tensor:
        """As of :class:`Recipe`, each channel by itself."""
        mean, std = self._moments(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """As of :class:`Recipe`."""
        mean, std = self._moments(x)
        return x * std + mean

    def gentle(self, area: float | None = None) -> PhotoViews:
        """One view, of the first one's crops and flips alone, as of :class:`Recipe`."""
        first = self.recipe.views[0]
        scale = first.scale if area is None else _from(area, first.scale)
        view = augment.View(first.size, scale=scale, ratio=first.ratio, flip=first.flip)
        return replace(self, recipe=replace(self.recipe, views=(view,)))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation for [B, C, H, W]; for grey images those of red."""
        mean, std = x.new_tensor([self.recipe.mean, self.recipe.std])[:, : x.shape[1], None, None]
        return mean, std


Views = Recipe | MultiCrop | PhotoViews


def _from(area: float, scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area <= scale[1]:  # NaN as well
        raise UserError(f"the least area of a crop must lie in (0, {scale[1]:g}], not {area}")
    return area, scale[1]


def _columns(u: Tensor) -> Iterator[Tensor]:
    return iter(u.unbind(dim=1))


def _between(u: Iterator[Tensor], low: float, high: float) -> Tensor:
    return low + (high - low) * next(u)


def _choose(u: Iterator[Tensor], probability: float) -> Tensor:
    return _pixelwise(next(u) < probability)


def _pixelwise(x: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return x[:, None, None, None]
