"""Pretext tasks of hidden pixels: what is not seen is to be said by what is.

What is hidden of a sample depends on (seed, its number) alone, the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.augment.pretext import Pixels
from fastssl.augment.recipes import PHOTO, Range, View
from fastssl.ops.augment import Packed
from fastssl.ops.checks import check_seed
from fastssl.reference import pretext as draws


class Masked(NamedTuple):
    """Views, and what of them is hidden."""

    images: Tensor  # [B, C, H, W], whole: what is to be guessed
    mask: Tensor  # bool [B, 1, H, W]; True: hidden

    @property
    def visible(self) -> Tensor:
        """The views with what is hidden at 0, the mean colour, [B, C, H, W]."""
        return self.images.masked_fill(self.mask, 0)


class MaskedPatches(NamedTuple):
    """Views, and which patches of them are hidden. Patches count row by row: N of them."""

    images: Tensor  # [B, C, H, W], whole
    mask: Tensor  # bool [B, H / patch, W / patch]; True: hidden
    kept: Tensor  # int64 [B, K]: the patches to be seen, in random order
    restore: Tensor  # int64 [B, N]: places in (kept, then hidden) of patches 0 to N − 1

    @property
    def visible(self) -> Tensor:
        """The views with what is hidden at 0, the mean colour, [B, C, H, W]."""
        patch = self.images.shape[2] // self.mask.shape[1]
        mask = self.mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        return self.images.masked_fill(mask[:, None], 0)


@dataclass(frozen=True)
class CentreMask(Pixels):
    """The middle of each view is hidden: ``images, mask = CentreMask()(images, indices, seed)``.

    Args:
        view: what happens to the image before. The paper's are of 128 pixels a side.
        side: of what is hidden, share of the view's height and width, rounded to pixels.

    Raises:
        ValueError: a side outside (0, 1].

    Pathak et al. 2016 (context encoders), https://arxiv.org/abs/1604.07379
    """

    view: View = PHOTO
    side: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.side <= 1:  # NaN as well
            raise ValueError(f"side must be a share, in (0, 1], not {self.side}")

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Masked:
        """Views and their masks; arguments and errors as of :class:`fastssl.augment.Recipe`."""
        x = self._view(self.view, images, indices, seed, dtype, channels_last)
        return Masked(x, self.masks(indices, seed))

    def masks(self, indices: Tensor, seed: int) -> Tensor:
        """bool [B, 1, H, W]; True: hidden. The same for each sample, whatever the seed."""
        height, width = self.view.shape
        hidden = indices.new_zeros((len(indices), 1, height, width), dtype=torch.bool)
        h, w = (max(1, round(self.side * pixels)) for pixels in (height, width))
        top, left = (height - h) // 2, (width - w) // 2
        hidden[:, :, top : top + h, left : left + w] = True
        return hidden


@dataclass(frozen=True)
class BlockMask(Pixels):
    """Several rectangles of each view are hidden, anywhere; they may lie on each other.

    Args:
        view: what happens to the image before.
        blocks: how many.
        side: range of their heights and widths, shares of the view's, rounded down to pixels; any
            whole number within is as likely. As it is, at most a quarter of the view is hidden, as
            in the paper.

    Raises:
        ValueError: no blocks, a range that is not within (0, 1].

    Pathak et al. 2016 (context encoders), https://arxiv.org/abs/1604.07379
    """

    view: View = PHOTO
    blocks: int = 4
    side: Range = (0.125, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.blocks, int) or self.blocks < 1:
            raise ValueError(f"blocks must be a whole number, at least 1, not {self.blocks}")
        if len(self.side) != 2 or not 0 < self.side[0] <= self.side[1] <= 1:
            raise ValueError(f"side must be a range within (0, 1], not {self.side}")

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Masked:
        """Views and their masks; arguments and errors as of :class:`fastssl.augment.Recipe`."""
        x = self._view(self.view, images, indices, seed, dtype, channels_last)
        return Masked(x, self.masks(indices, seed))

    def masks(self, indices: Tensor, seed: int) -> Tensor:
        """bool [B, 1, H, W]; True: hidden."""
        seed = check_seed(seed)
        size = self.view.shape
        low, high = self.side
        ranges = [(max(1, int(low * pixels)), max(1, int(high * pixels))) for pixels in size]
        return draws.blocks(indices, seed, size, self.blocks, ranges)[:, None]


@dataclass(frozen=True)
class PatchMask(Pixels):
    """Most of a grid of patches are hidden, the same number of each view: masked autoencoders.

    Args:
        view: what happens to the image before; its height and width are multiples of ``patch``.
        patch: a patch's side, in pixels.
        ratio: share of patches that are hidden; ``⌊N · (1 − ratio)⌋`` are seen, as its authors
            have it.

    Raises:
        ValueError: a patch that does not divide the view, a ratio outside
            [0, 1), one so large that nothing is seen.

    He et al. 2021, https://arxiv.org/abs/2111.06377
    """

    view: View = PHOTO
    patch: int = 16
    ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.view.shape
        if not isinstance(self.patch, int) or self.patch < 1:
            raise ValueError(f"patch must be a whole number, at least 1, not {self.patch}")
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch must divide the view, {height} × {width}, not {self.patch}")
        if not 0 <= self.ratio < 1:  # NaN as well
            raise ValueError(f"ratio must be a share, in [0, 1), not {self.ratio}")
        if not self.seen:
            raise ValueError(f"ratio must leave a patch of {self._grid} to be seen: {self.ratio}")

    @property
    def seen(self) -> int:
        """K, how many patches of a view are seen."""
        rows, columns = self._grid
        return int(rows * columns * (1 - self.ratio))

    @property
    def _grid(self) -> tuple[int, int]:
        height, width = self.view.shape
        return height // self.patch, width // self.patch

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> MaskedPatches:
        """Views and their masks; arguments and errors as of :class:`fastssl.augment.Recipe`.

        With tokens [B, N, D], row by row, an encoder's are
        ``tokens.gather(1, kept[:, :, None].expand(-1, -1, D))``, and a decoder's, from those and
        N − K tokens for the hidden, ``all.gather(1, restore[:, :, None].expand(-1, -1, D))``.
        """
        x = self._view(self.view, images, indices, seed, dtype, channels_last)
        order = self.order(indices, seed)
        restore = order.argsort(dim=1)
        mask = (restore >= self.seen).unflatten(1, self._grid)
        return MaskedPatches(x, mask, order[:, : self.seen], restore)

    def order(self, indices: Tensor, seed: int) -> Tensor:
        """The patches, those to be seen first, int64 [B, N]; any order is as likely."""
        seed = check_seed(seed)
        rows, columns = self._grid
        return draws.shuffled(indices, seed, rows * columns)
