"""Pretext tasks of colour: it is to be said from lightness, and lightness from it.

Colours are CIE Lab's: L, 0 to 100, is how light a pixel is, and a and b are its colour, whose label
is the nearest of 313 bins, 10 apart in a and b, that cover what sRGB has. The conversion is plain
torch, in float32: some 2% of a ResNet-18's step on CPUs, not worth a kernel of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.augment.recipes import PHOTO, Recipe, View, channels_of, check_dtype
from fastssl.ops.augment import Packed
from fastssl.reference.lab import GRID, ab_bins, rgb_to_lab

REACH = 12  # the table of bins holds a and b from −120 to 120
# Among so many bins by a point of the grid, a colour's nearest are sought: for colours of sRGB, the
# nearest five are always among nine, the nearest nine among nineteen.
NEAR_FIVE, NEAR = 12, 25


class Colorized(NamedTuple):
    """Lightness, and the colours that it is to be given."""

    lightness: Tensor  # [B, 1, H, W], L in [0, 100]; the paper's network takes L − 50
    ab: Tensor  # [B, 2, h, w], h = ⌈H / stride⌉
    labels: Tensor  # int64 [B, h, w], 0 to 312


class SplitChannels(NamedTuple):
    """Two halves of each image, and for each the other's labels."""

    lightness: Tensor  # [B, 1, H, W], L in [0, 100]
    ab: Tensor  # [B, 2, H, W]
    lightness_labels: Tensor  # int64 [B, h, w], to be said from ab; h = ⌈H / stride⌉
    ab_labels: Tensor  # int64 [B, h, w], 0 to 312, to be said from lightness


@dataclass(frozen=True)
class _Lab:
    """What the tasks of colour share.

    Args:
        view: what happens to the image before; jitter and grey change the colours to be said.
        stride: labels are those of every so many pixels, in rows and columns, as the paper's
            network has a quarter of its input's resolution.
        quantized: pixels are whole numbers after each step of the view; else float32.
    """

    view: View = PHOTO
    stride: int = 4
    quantized: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"stride must be a whole number, at least 1, not {self.stride}")

    def _lab(self, images: Tensor | Packed, indices: Tensor, seed: int) -> Tensor:
        recipe = Recipe((self.view,), (0.0,), (1.0,), self.quantized)
        parameters = recipe.parameters(images, indices, seed)
        if channels_of(images) != 3:
            raise ValueError("images must have 3 channels: grey ones have no colour to be said")
        (x,) = recipe.apply(images, parameters)
        few = 2 if x.device.type == "cpu" else len(x)  # as many as stay in a core's cache
        return torch.cat([rgb_to_lab(part) for part in x.split(few)])  # [B, 3, H, W]


@dataclass(frozen=True)
class Colorization(_Lab):
    """The colour of each pixel: ``lightness, ab, labels = Colorization()(images, indices, seed)``.

    ``soft_ab_labels(ab)`` is the paper's soft encoding of the labels, ``decode_ab(logits)`` its
    annealed mean, and ``lab_to_rgb`` makes a picture of lightness and colours.

    Zhang et al. 2016, https://arxiv.org/abs/1603.08511
    """

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Colorized:
        """Lightness, colours and labels.

        Args:
            images: uint8 [B, 3, H, W] or [B, H, W, 3], or :class:`fastssl.augment.Packed`.
            indices: int64, shape [B]: each sample's number in its set, on the images' device.
            seed: 0 to 2^64 − 1.
            dtype: of lightness and ab; labels are of float32 in any case.

        Raises:
            TypeError, ValueError: as of :class:`fastssl.augment.Recipe`; images without colour.
        """
        check_dtype(dtype)
        lightness, ab = self._lab(images, indices, seed).split((1, 2), dim=1)
        ab = ab[:, :, :: self.stride, :: self.stride]
        return Colorized(lightness.to(dtype), ab.to(dtype), ab_labels(ab))


@dataclass(frozen=True)
class SplitBrain(_Lab):
    """Each half of the channels from the other: lightness from colours and colours from lightness.

    Args:
        bins: of lightness, alike from 0 to 100.

    Zhang et al. 2017 (split-brain autoencoders), https://arxiv.org/abs/1611.09842
    """

    bins: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bins, int) or self.bins < 1:
            raise ValueError(f"bins must be a whole number, at least 1, not {self.bins}")

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> SplitChannels:
        """Both halves and both's labels; arguments and errors as of :class:`Colorization`."""
        check_dtype(dtype)
        lightness, ab = self._lab(images, indices, seed).split((1, 2), dim=1)
        few = slice(None, None, self.stride)
        lightness_labels = (lightness[:, 0, few, few] * (self.bins / 100)).long()
        return SplitChannels(
            lightness.to(dtype),
            ab.to(dtype),
            lightness_labels.clamp(0, self.bins - 1),
            ab_labels(ab[:, :, few, few]),
        )


def ab_labels(ab: Tensor) -> Tensor:
    """The bin nearest to each colour.

    Args:
        ab: float, shape [B, 2, h, w]. Of colours that sRGB lacks, and that are outside all bins, it
            is the bin nearest to the point of the grid nearest to the colour; NaN counts as 0.

    Returns:
        int64, shape [B, h, w], 0 to 312, as Zhang et al. number them.
    """
    return _near_bins(ab.device)[:, 0][_place(ab)]


def soft_ab_labels(ab: Tensor, neighbours: int = 5, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Zhang et al.'s soft encoding: weights ``exp(−d² / 2σ²)`` of a colour's nearest bins, d far
    from it, that sum to 1.

    Args:
        ab: float, shape [B, 2, h, w].
        neighbours: K, 1 to 9.
        sigma: σ, in units of a and b.

    Returns:
        bins, int64 [B, K, h, w], nearest first, and weights, float32 [B, K, h, w].

    Raises:
        ValueError: neighbours or sigma outside their range.
    """
    if not 1 <= neighbours <= 9:
        raise ValueError(f"neighbours must lie in [1, 9], not {neighbours}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    table = _near_bins(ab.device)[:, : NEAR_FIVE if neighbours <= 5 else NEAR]
    near = table[_place(ab)]  # [B, h, w, T]
    centres = ab_bins().to(ab.device)[near]  # [B, h, w, T, 2]
    squares = (centres - ab.float().permute(0, 2, 3, 1).unsqueeze(3)).square().sum(dim=4)
    nearest, at = squares.topk(neighbours, dim=3, largest=False)
    weights = torch.softmax(-nearest / (2 * sigma**2), dim=3)
    return near.gather(3, at).permute(0, 3, 1, 2), weights.permute(0, 3, 1, 2)


def decode_ab(logits: Tensor, temperature: float = 0.38) -> Tensor:
    """Colours of a network's answer: the mean of the bins by ``softmax(logits / T)``, between the
    likeliest bin (T → 0) and the mean of the distribution (T = 1).

    Args:
        logits: float, shape [B, 313, h, w].
        temperature: T, positive.

    Returns:
        float32, shape [B, 2, h, w].

    Raises:
        ValueError: logits of another shape, a temperature that is not positive.

    Zhang et al. 2016, https://arxiv.org/abs/1603.08511
    """
    bins = ab_bins().to(logits.device)  # [313, 2]
    if logits.dim() != 4 or logits.shape[1] != len(bins):
        raise ValueError(f"logits must have shape [B, {len(bins)}, h, w], not {list(logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    shares = torch.softmax(logits.float() / temperature, dim=1)
    return torch.einsum("bqhw,qc->bchw", shares, bins)


def _place(ab: Tensor) -> Tensor:
    """Which row of the table is a colour's, int64 [B, h, w]."""
    if not ab.is_floating_point() or ab.dim() != 4 or ab.shape[1] != 2:
        raise ValueError(f"ab must be float of shape [B, 2, h, w], not {ab.dtype} {list(ab.shape)}")
    grid = (ab.float().nan_to_num(nan=0.0) / GRID).round().clamp(-REACH, REACH).long() + REACH
    return grid[:, 0] * (2 * REACH + 1) + grid[:, 1]


@torch.compiler.assume_constant_result
def _near_bins(device: torch.device) -> Tensor:
    """The bins nearest to each point of the grid, nearest first, int64 [(2 · REACH + 1)², NEAR]."""
    return _table(device)


@lru_cache
def _table(device: torch.device) -> Tensor:
    line = GRID * torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    squares = (torch.cartesian_prod(line, line)[:, None] - ab_bins().double()).square().sum(dim=2)
    return squares.argsort(dim=1, stable=True)[:, :NEAR].contiguous().to(device)
