"""Pretext tasks as pictures: rows of images, by name, in the proportions of the papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import augment
from fastssl.augment import View

Rows = dict[str, Tensor]  # float [n, C, h, w] in [0, 1], none larger than the images


def rotation(images: Tensor, indices: Tensor, seed: int) -> Rows:
    made = augment.Rotation(View(images.shape[2]), mean=(0.0,), std=(1.0,))(images, indices, seed)
    return {f"{90 * turns}°": x for turns, x in enumerate(made.images.chunk(4))}


def patches(images: Tensor, indices: Tensor, seed: int) -> Rows:
    """The two patches on white, as they lie."""
    side = images.shape[2]
    size, gap, jitter = (side * length // 400 for length in (96, 48, 7))
    task = augment.RelativePatches(max(1, size), gap, jitter, max(3, side), mean=(0.0,), std=(1.0,))
    pair = task(images, indices, seed)
    place = pair.labels + (pair.labels > 3).long()
    cells = images.new_ones((9, *pair.centre.shape), dtype=torch.float32)
    cells[4] = pair.centre
    cells[place, torch.arange(len(place))] = pair.neighbour
    return {"patches": laid_out(cells, gap)}


def jigsaw(images: Tensor, indices: Tensor, seed: int) -> Rows:
    """The puzzle, and its solution."""
    cell = max(1, images.shape[2] // 3)
    size = max(1, cell * 64 // 85)
    task = augment.Jigsaw(100, size, cell, each=False, mean=(0.0,), std=(1.0,))
    puzzle = task(images, indices, seed)
    order = augment.far_permutations(100)[puzzle.labels].T  # [9, n]
    solved = torch.empty_like(puzzle.patches)
    solved[order, torch.arange(len(indices))] = puzzle.patches
    gap = cell - size
    return {"puzzle": laid_out(puzzle.patches, gap), "solved": laid_out(solved, gap)}


def counting(images: Tensor, indices: Tensor, seed: int) -> Rows:
    side = images.shape[2]
    size = max(1, side * 112 // 256)
    task = augment.Counting(size, max(2, side), mean=(0.0,), std=(1.0,))
    made = task(images, indices, seed)
    return {
        "tiles": laid_out(made.tiles, max(0, min(2, side - 2 * size))),
        "whole": made.whole,
        "another": made.whole[made.others],
    }


def colorization(images: Tensor, indices: Tensor, seed: int) -> Rows:
    """Lightness, colours at one lightness, and the image from its labels."""
    made = augment.Colorization(View(images.shape[2]), stride=1)(images, indices, seed)
    bins = augment.ab_bins()[made.labels].permute(0, 3, 1, 2)  # [n, 2, h, w]
    one = torch.full_like(made.lightness, 65.0)
    return {
        "lightness": (made.lightness / 100).expand(-1, 3, -1, -1),
        "colours": augment.lab_to_rgb(torch.cat([one, made.ab], dim=1)),
        "of labels": augment.lab_to_rgb(torch.cat([made.lightness, bins], dim=1)),
    }


def centre_mask(images: Tensor, indices: Tensor, seed: int) -> Rows:
    task = augment.CentreMask(View(images.shape[2]), mean=(0.0,), std=(1.0,))
    return {"visible": task(images, indices, seed).visible}


def block_mask(images: Tensor, indices: Tensor, seed: int) -> Rows:
    task = augment.BlockMask(View(images.shape[2]), mean=(0.0,), std=(1.0,))
    return {"visible": task(images, indices, seed).visible}


def patch_mask(images: Tensor, indices: Tensor, seed: int) -> Rows:
    """About 14 patches to a side, as of 16 pixels in 224."""
    side = images.shape[2]
    patch = max(n for n in range(1, max(1, side // 14) + 1) if side % n == 0)
    ratio = 0.75 if side // patch > 1 else 0.0
    task = augment.PatchMask(View(side), patch, ratio, mean=(0.0,), std=(1.0,))
    return {"visible": task(images, indices, seed).visible}


def laid_out(pieces: Tensor, gap: int) -> Tensor:
    """[n², B, C, s, s] as squares of n × n with white between: [B, C, S, S]."""
    n = round(len(pieces) ** 0.5)
    framed = F.pad(pieces, (0, gap, 0, gap), value=1.0)
    rows = [torch.cat(list(row), dim=3) for row in framed.unflatten(0, (n, n))]
    side = n * pieces.shape[-1] + (n - 1) * gap
    return torch.cat(rows, dim=2)[..., :side, :side]


TASKS: dict[str, Callable[[Tensor, Tensor, int], Rows]] = {
    "rotation": rotation,
    "patches": patches,
    "jigsaw": jigsaw,
    "counting": counting,
    "colorization": colorization,
    "centre-mask": centre_mask,
    "block-mask": block_mask,
    "patch-mask": patch_mask,
}
