"""Pretext tasks: what a network is to guess is known, for we did it.

Each task is a function of a batch, the samples' numbers and a seed; what is drawn for a sample
depends on (seed, its number) alone, in whole numbers that are the same on every device. Turns here,
pieces of images, hidden pixels and colours in their own files. Turns and pieces are rows of
parameters of :func:`fastssl.ops.augment`: all are cut out, resized, turned and normalised in one
pass, from photographs of any sizes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.augment.recipes import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PHOTO,
    Recipe,
    View,
    check_draw,
    per_channel,
)
from fastssl.ops.augment import Packed, augment
from fastssl.ops.augment_parameters import augment_parameters
from fastssl.reference import pretext as draws
from fastssl.reference.augment_parameters import Column


class Rotated(NamedTuple):
    """Views and how they were turned."""

    images: Tensor  # [R, C, size, size], R = 4 · B or B
    labels: Tensor  # int64 [R]: quarter turns, counter-clockwise, 0 to 3


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How a task's pixels come to be numbers.

    Args:
        mean: of pixels in [0, 1], a number for each channel, or one for all.
        std: as ``mean``.
        quantized: pixels are whole numbers after each step, as torchvision has them on uint8
            tensors; else float32.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    quantized: bool = False

    def __post_init__(self) -> None:
        Recipe((PHOTO,), self.mean, self.std)  # which checks them

    def _view(
        self,
        view: View,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        recipe = Recipe((view,), self.mean, self.std, self.quantized)
        return recipe(images, indices, seed, dtype=dtype, channels_last=channels_last)[0]

    def _made(
        self,
        images: Tensor | Packed,
        rows: Tensor,  # [V · B, 19]
        view: View,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> Tensor:
        return augment(
            images,
            rows,
            view.shape,
            taps=view.blur_taps,
            mean=per_channel(self.mean, images),
            std=per_channel(self.std, images),
            quantized=self.quantized,
            dtype=dtype,
            channels_last=channels_last,
        )


@dataclass(frozen=True)
class Rotation(Pixels):
    """Which way is up: ``images, labels = Rotation()(images, indices, seed)``.

    Args:
        view: square; what happens to the image before it is turned (crop, flips) and after (jitter,
            blur, …).
        every: whether all four turns of each view are made, as in the paper, or one, drawn for each
            sample.

    Raises:
        ValueError: a view that is not square, or that turns by itself.

    Gidaris et al. 2018, https://arxiv.org/abs/1803.07728
    """

    view: View = PHOTO
    every: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.view.shape
        if height != width or self.view.turn:
            raise ValueError(
                f"view must be square and its turn 0, not {height} × {width} and {self.view.turn:g}"
            )

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Rotated:
        """Turned views.

        Args:
            images: uint8 [B, C, H, W] or [B, H, W, C], C = 1 or 3, or :class:`Packed`.
            indices: int64, shape [B]: each sample's number in its set, on the images' device.
            seed: 0 to 2^64 − 1.
            dtype: of the views: float32, bfloat16 or float16.
            channels_last: their memory format.

        Returns:
            Views [4 · B, C, size, size], the batch unturned, then turned once, twice and thrice, or
            [B, C, size, size]; and their turns.

        Raises:
            TypeError, ValueError: as of :func:`fastssl.ops.augment`; indices that are not int64
                [B], a seed outside its range.
        """
        rows, labels = self.parameters(images, indices, seed)
        if not self.every or self.view.erase or channels_last:  # which torch turns slowly
            return Rotated(self._made(images, rows, self.view, dtype, channels_last), labels)
        # All that is done after a turn does the same to every pixel or on every side: views are
        # made once, and turned as they are.
        x = self._made(images, rows[: len(indices)], self.view, dtype, channels_last)
        turned = x.new_empty((4, *x.shape))
        turned[0], turned[2] = x, x.flip((2, 3))
        turned[1], turned[3] = x.flip(3).mT, x.flip(2).mT
        return Rotated(turned.flatten(0, 1), labels)

    def parameters(
        self, images: Tensor | Packed, indices: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Rows for :func:`fastssl.ops.augment`, float32 [R, 19], and labels, int64 [R]."""
        sizes, seed = check_draw(images, indices, seed)
        rows = augment_parameters(sizes, indices, seed, 0, self.view.shape, self.view.chances)
        if self.every:
            labels = torch.arange(4, device=indices.device).repeat_interleave(len(indices))
            rows = rows.repeat(4, 1)
        else:
            labels = draws.turns(indices, seed)
        rows[:, Column.TURNS] = labels.float()
        return rows, labels
