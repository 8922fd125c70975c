"""Pretext tasks of pieces of images: where they lie, in which order, what is in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.augment.permutations import far_permutations
from fastssl.augment.pretext import Pixels
from fastssl.augment.recipes import View, check_draw, check_dtype
from fastssl.ops.augment import Packed
from fastssl.reference import pretext as draws
from fastssl.reference.augment_parameters import Column


class RelativePair(NamedTuple):
    """Two patches and where the second lies, seen from the first."""

    centre: Tensor  # [B, C, size, size]
    neighbour: Tensor  # [B, C, size, size]
    labels: Tensor  # int64 [B]: of the eight around the centre, row by row, 0 to 7


class Puzzle(NamedTuple):
    """Patches in another order, and which order."""

    patches: Tensor  # [n², B, C, size, size]; flatten(0, 1) copies nothing
    labels: Tensor  # int64 [B]: rows of the task's permutations


class Counted(NamedTuple):
    """Four tiles, the whole they make up, and for each sample another one."""

    tiles: Tensor  # [4, B, C, size, size]
    whole: Tensor  # [B, C, size, size]
    others: Tensor  # int64 [B]: a place in the batch, never the sample's own


@dataclass(frozen=True, kw_only=True)
class _Pieces(Pixels):
    """A task of square pieces.

    Args:
        grey: probability that all of a sample's pieces lose their colour, which a lens bends
            differently in the middle and at the edge of a photograph: networks see that.
    """

    grey: float = 0.0

    def _check(self, **lengths: int) -> None:
        super().__post_init__()
        for name, length in lengths.items():
            least = 0 if name in ("gap", "jitter") else 1
            if not isinstance(length, int) or length < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, not {length}")
        if not 0 <= self.grey <= 1:  # NaN as well
            raise ValueError(f"grey must be a probability, in [0, 1], not {self.grey}")

    def _rows(self, crops: Tensor, bits: Tensor) -> Tensor:
        """float32 [V · B, 19] of crops [V, B, 4], grey by random bits [B]."""
        rows = crops.new_zeros((*crops.shape[:2], len(Column)), dtype=torch.float32)
        rows[..., Column.TOP : Column.FLIP] = crops.float()
        rows[..., Column.ORDER] = -1
        rows[..., Column.BRIGHTNESS : Column.HUE] = 1
        rows[..., Column.GREY] = (bits < int(self.grey * 2**32)).float()
        rows[..., Column.SOLARIZE] = math.inf
        return rows.flatten(0, 1)


@dataclass(frozen=True)
class RelativePatches(_Pieces):
    """Where does a patch lie, seen from another: of nine in a square, the middle one and one of the
    eight around it.

    Lengths count in pixels of an image whose shorter side has ``image``; of others they are scaled,
    and patches resized, so that photographs of any size do, and tiny ones.

    Args:
        size: a patch's side.
        gap: between patches, so that no line leads from one to the next.
        jitter: each patch is moved by up to so much each way.
        image: at least ``3 · size + 2 · (gap + jitter)``. The paper's images have 150,000 to
            450,000 pixels: 400 stands for photographs of 400 × 530.

    Raises:
        ValueError: lengths that are not whole or too small, an image that does not hold nine
            patches, a probability outside [0, 1].

    Doersch et al. 2015, https://arxiv.org/abs/1505.05192
    """

    size: int = 96
    gap: int = 48
    jitter: int = 7
    image: int = 400

    def __post_init__(self) -> None:
        self._check(size=self.size, gap=self.gap, jitter=self.jitter, image=self.image)
        least = 3 * self.size + 2 * (self.gap + self.jitter)
        if self.image < least:
            raise ValueError(
                f"image must be at least {least}, three patches with gaps and jitter, "
                f"not {self.image}"
            )

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> RelativePair:
        """Pairs of patches, [B, C, size, size] each; arguments and errors as of :class:`Rotation`.

        How often a label comes is the same for each, and says nothing of where the first patch
        lies in its image.
        """
        rows, labels = self.parameters(images, indices, seed)
        x = self._made(images, rows, View(self.size), dtype, channels_last)
        centre, neighbour = x.chunk(2)
        return RelativePair(centre, neighbour, labels)

    def parameters(
        self, images: Tensor | Packed, indices: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Rows for :func:`fastssl.ops.augment`, float32 [2 · B, 19], the centres', then the
        neighbours'; and labels, int64 [B]."""
        sizes, seed = check_draw(images, indices, seed)
        crops, labels, bits = draws.relative_patches(
            sizes, indices, seed, self.size, self.gap, self.jitter, self.image
        )
        return self._rows(crops, bits), labels


@dataclass(frozen=True)
class Jigsaw(_Pieces):
    """Which of so many permutations shuffled the patches: one of each cell of a square.

    Lengths count in pixels of a square of ``grid · cell``: the largest that the image allows,
    anywhere in it, is scaled to that, and patches are resized.

    Args:
        permutations: how many, from :func:`far_permutations`.
        size: a patch's side, at most ``cell``. It stands anywhere within its cell, so that edges do
            not give the order away.
        cell: a cell's side.
        grid: cells to a side, 2 or 3.
        each: whether every patch's channels are normalised by its own mean and standard deviation,
            as in the paper, instead of ``mean`` and ``std``: brightness does not give it away
            either. A patch without contrast becomes 0.

    Raises:
        ValueError: numbers that are not as above, more permutations than there are.

    Noroozi and Favaro 2016, https://arxiv.org/abs/1603.09246
    """

    permutations: int = 100
    size: int = 64
    cell: int = 85
    grid: int = 3
    each: bool = True

    def __post_init__(self) -> None:
        self._check(size=self.size, cell=self.cell, permutations=self.permutations)
        if self.size > self.cell:
            raise ValueError(f"size must be at most cell, {self.cell}, not {self.size}")
        if self.grid not in (2, 3):
            raise ValueError(f"grid must be 2 or 3, not {self.grid}")
        if self.permutations > math.factorial(self.grid**2):
            raise ValueError(
                f"permutations must be at most {math.factorial(self.grid**2)}, all there are of "
                f"{self.grid**2} cells, not {self.permutations}"
            )

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Puzzle:
        """Shuffled patches, [grid², B, C, size, size]: at place i, a patch of cell
        ``far_permutations(permutations, grid²)[label][i]``, cells counted row by row; arguments and
        errors as of :class:`Rotation`."""
        rows, labels = self.parameters(images, indices, seed)
        view = View(self.size)
        if not self.each:
            x = self._made(images, rows, view, dtype, channels_last)
        else:
            check_dtype(dtype)
            plain = Pixels(mean=(0.0,), std=(1.0,), quantized=self.quantized)
            x = _standardised(plain._made(images, rows, view, torch.float32, channels_last))
        return Puzzle(x.to(dtype).unflatten(0, (self.grid**2, -1)), labels)

    def parameters(
        self, images: Tensor | Packed, indices: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Rows for :func:`fastssl.ops.augment`, float32 [grid² · B, 19], place by place; and
        labels, int64 [B]."""
        sizes, seed = check_draw(images, indices, seed)
        permutations = _permutations(indices.device, self.permutations, self.grid**2)
        crops, labels, bits = draws.jigsaw(sizes, indices, seed, permutations, self.size, self.cell)
        return self._rows(crops, bits), labels


@dataclass(frozen=True)
class Counting(_Pieces):
    """What is in four tiles is in the whole: features of the one add up to the other's, and differ
    from another image's.

    Args:
        size: a tile's side, which the whole is resized to.
        image: lengths count in pixels of an image whose shorter side has so many, at least
            ``2 · size``: a square of ``2 · size`` is taken anywhere in it.

    Raises:
        ValueError: numbers that are not whole, an image smaller than the tiles, a probability
            outside [0, 1].

    Noroozi et al. 2017, https://arxiv.org/abs/1708.06734
    """

    size: int = 112
    image: int = 256

    def __post_init__(self) -> None:
        self._check(size=self.size, image=self.image)
        if self.image < 2 * self.size:
            raise ValueError(f"image must be at least {2 * self.size}, two tiles, not {self.image}")

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Counted:
        """Tiles [4, B, C, size, size], row by row, wholes [B, C, size, size] and others [B];
        arguments and errors as of :class:`Rotation`.

        Another image's features are those of its whole, ``features(whole)[others]``. Which one it
        is depends on the batch, as nothing else does.

        Raises:
            ValueError: a batch of one, besides.
        """
        rows, others = self.parameters(images, indices, seed)
        x = self._made(images, rows, View(self.size), dtype, channels_last)
        x = x.unflatten(0, (5, -1))
        return Counted(x[:4], x[4], others)

    def parameters(
        self, images: Tensor | Packed, indices: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Rows for :func:`fastssl.ops.augment`, float32 [5 · B, 19], the tiles', then the wholes';
        and each sample's other, int64 [B]."""
        sizes, seed = check_draw(images, indices, seed)
        if len(indices) == 1:
            raise ValueError("images must be two or more: counting compares one with another")
        crops, others, bits = draws.counting(sizes, indices, seed, self.size, self.image)
        return self._rows(crops, bits), others


def _standardised(x: Tensor) -> Tensor:
    """Each image's channels, [R, C, H, W] in [0, 1], with mean 0 and variance 1: a standard
    deviation below a grey level counts as one."""
    x = x - x[:, :, :1, :1]  # so that what has no contrast is 0 and not what rounding left
    x -= x.mean(dim=(2, 3), keepdim=True)
    deviation = x.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return x.div_(deviation.clamp_(min=1 / 255))


@torch.compiler.assume_constant_result
def _permutations(device: torch.device, count: int, cells: int) -> Tensor:
    return _copied(device, count, cells)


@lru_cache
def _copied(device: torch.device, count: int, cells: int) -> Tensor:
    """The permutations, on a device since they were first asked for there."""
    return far_permutations(count, cells).to(device)
