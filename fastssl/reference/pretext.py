"""The specification of what is drawn for pretext tasks: whole numbers, the same on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.reference.philox import philox

# What stands in Philox for the view: the last numbers, which no recipe comes to.
ROTATION, RELATIVE, JIGSAW, COUNTING, BLOCKS, PATCHES = range(2**32 - 6, 2**32)


def below(bits: Tensor, limit: Tensor | int) -> Tensor:
    """⌊limit · bits / 2^32⌋: of 32 random bits, a whole number of 0 to ``limit − 1``."""
    return bits * limit >> 32


def turns(samples: Tensor, seed: int) -> Tensor:
    """Quarter turns of each sample, 0 to 3, int64 [B]."""
    return below(philox(seed, samples, ROTATION, 1)[:, 0], 4)


def relative_patches(
    sizes: Tensor,  # int64 [B, 2]
    samples: Tensor,  # int64 [B]
    seed: int,
    size: int,
    gap: int,
    jitter: int,
    image: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The patch in the middle of nine, and one of the eight around it.

    Lengths count in pixels of an image whose shorter side has ``image``; of others, they are scaled
    and rounded down, the patch's to at least 1. The nine stand anywhere within the image, as likely
    as elsewhere; then both patches are moved by up to ``jitter`` each way.

    Returns:
        crops, int64 [2, B, 4]: top, left, height, width; labels, int64 [B]: 0 to 7, row by row;
        32 random bits that are left over, int64 [B].
    """
    bits = philox(seed, samples, RELATIVE, 8)
    shorter = sizes.amin(dim=1, keepdim=True)  # [B, 1]
    side, space, move = (shorter * length // image for length in (size, gap, jitter))
    side = side.clamp(min=1)
    labels = below(bits[:, 0], 8)
    place = labels + (labels >= 4).long()  # of nine: the fourth is the middle
    around = torch.stack([place // 3, place % 3], dim=1)  # [B, 2]
    spare = sizes - (3 * side + 2 * space + 2 * move)
    corner = move + below(bits[:, 1:3], spare.clamp(min=0) + 1)
    starts = torch.stack([corner + (side + space) * at for at in (torch.ones_like(around), around)])
    moves = torch.stack([below(bits[:, i : i + 2], 2 * move + 1) - move for i in (3, 5)])
    return _squares(starts + moves, side, sizes), labels, bits[:, 7]


def jigsaw(
    sizes: Tensor,  # int64 [B, 2]
    samples: Tensor,  # int64 [B]
    seed: int,
    permutations: Tensor,  # int64 [P, n²]
    size: int,
    cell: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A patch of each of n × n cells, shuffled: at place i, one of cell ``permutation[i]``.

    The cells share a square as large as the image allows, anywhere in it. Lengths count in pixels
    of a square of ``n · cell``; of others, they are scaled and rounded down, the patch's to at
    least 1. A patch stands anywhere within its cell.

    Returns:
        crops, int64 [n², B, 4]; labels, int64 [B]: rows of ``permutations``; 32 random bits that
        are left over, int64 [B].
    """
    count, cells = permutations.shape
    n = math.isqrt(cells)
    bits = philox(seed, samples, JIGSAW, 4 + 2 * cells)
    labels = below(bits[:, 0], count)
    whole = sizes.amin(dim=1, keepdim=True)  # [B, 1]
    corner = below(bits[:, 1:3], sizes - whole + 1)  # [B, 2]
    side = (whole * size // (n * cell)).clamp(min=1)
    order = permutations[labels].T  # [n², B]
    at = torch.stack([order // n, order % n], dim=2)  # [n², B, 2]
    begin, end = whole * at // n, whole * (at + 1) // n
    room = (end - begin - side).clamp(min=0)
    within = begin + below(bits[:, 4:].view(-1, cells, 2).transpose(0, 1), room + 1)
    return _squares(corner + within, side, sizes), labels, bits[:, 3]


def counting(
    sizes: Tensor,  # int64 [B, 2]
    samples: Tensor,  # int64 [B]
    seed: int,
    size: int,
    image: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Four tiles of a square anywhere in the image, row by row, and the square.

    A tile's side counts in pixels of an image whose shorter side has ``image``; of others, it is
    scaled and rounded down, to at least 1.

    Returns:
        crops, int64 [5, B, 4]; for each sample another's place in the batch, int64 [B]; 32 random
        bits that are left over, int64 [B].
    """
    bits = philox(seed, samples, COUNTING, 4)
    side = (sizes.amin(dim=1, keepdim=True) * size // image).clamp(min=1)  # [B, 1]
    corner = below(bits[:, :2], (sizes - 2 * side).clamp(min=0) + 1)  # [B, 2]
    tile = torch.arange(4, device=sizes.device)
    steps = torch.stack([tile // 2, tile % 2], dim=1)[:, None]  # [4, 1, 2]
    tiles = _squares(corner + side * steps, side, sizes)
    count = len(samples)
    ahead = 1 + below(bits[:, 2], max(count - 1, 1))
    others = (torch.arange(count, device=samples.device) + ahead) % max(count, 1)
    return torch.cat([tiles, _squares(corner[None], 2 * side, sizes)]), others, bits[:, 3]


def _squares(starts: Tensor, side: Tensor, sizes: Tensor) -> Tensor:
    """Crops [V, B, 4] kept within images, from [V, B, 2], [B, 1] and [B, 2]."""
    extent = torch.minimum(side, sizes).expand_as(starts)
    return torch.cat([torch.minimum(starts, sizes - extent), extent], dim=2)


def blocks(
    samples: Tensor,  # int64 [B]
    seed: int,
    size: tuple[int, int],
    count: int,
    sides: Sequence[tuple[int, int]],
) -> Tensor:
    """Pixels within any of ``count`` rectangles, bool [B, *size]: heights and widths of least to
    most pixels, each as likely, then a place."""
    bits = philox(seed, samples, BLOCKS, 4 * count).view(-1, count, 2, 2)
    inside = []  # of rows and of columns, [B, count, pixels] each
    for axis, (pixels, (least, most)) in enumerate(zip(size, sides, strict=True)):
        length = least + below(bits[:, :, 0, axis], most - least + 1)  # [B, count]
        start = below(bits[:, :, 1, axis], pixels - length + 1)
        place = torch.arange(pixels, device=samples.device) - start[:, :, None]
        inside.append((place >= 0) & (place < length[:, :, None]))
    return (inside[0][:, :, :, None] & inside[1][:, :, None]).any(dim=1)


def shuffled(samples: Tensor, seed: int, count: int) -> Tensor:
    """A permutation of 0 to ``count − 1`` for each sample, int64 [B, count]; any is as likely."""
    return philox(seed, samples, PATCHES, count).argsort(dim=1, stable=True)


def piece(image: Tensor, crop: tuple[int, int, int, int], size: int) -> Tensor:
    """A crop of an image [C, H, W] resized, [C, size, size], in units of 1/255: what the fused pass
    makes of a row of parameters, in the image's own dtype."""
    top, left, height, width = crop
    x = image[None, :, top : top + height, left : left + width]
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)[0]
