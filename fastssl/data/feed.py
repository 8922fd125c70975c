"""How a batch of images comes to the views that are made of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastssl import backends
from fastssl.augment import Packed
from fastssl.data.images import Images, TensorImages
from fastssl.data.store import ImageStore
from fastssl.data.views import PhotoViews, Views

SHARE = 4  # at most one part in so many of a GPU's free memory, unless more is asked for


def reader(
    images: Images | Tensor,
    recipe: Views | Callable[..., Tensor | list[Tensor]],
    *,
    pin: bool = False,
) -> Callable[[Tensor], Any]:
    """How batches of images are read for a recipe, from int64 indices [B] on the CPU.

    Args:
        images: any.
        recipe: views of photographs are made of images as they are; others want one size.
        pin: into page-locked memory, where the images are read by this package.

    Returns:
        A function to uint8 [B, C, H, W] or Packed, on the device where the images are.
    """
    if isinstance(images, ImageStore) and not isinstance(recipe, PhotoViews):
        return images.middles
    if isinstance(images, ImageStore | TensorImages):
        return partial(images.gather, pin=pin)
    return images.__getitem__


def resident(images: Images, device: torch.device, wanted: bool | None = None) -> Images:
    """The images, on the device where their views are made if they fit there.

    Args:
        images: any.
        device: a GPU; for a CPU nothing is done.
        wanted: None: where a kernel makes views on the device and a quarter of its free memory
            holds the images; True: in any case.

    Raises:
        UserError: they are wanted there and do not fit.
    """
    if (
        device.type != "cuda"
        or wanted is False
        or not isinstance(images, TensorImages | ImageStore)
    ):
        return images
    if wanted is None:
        free = torch.cuda.mem_get_info(device)[0]
        if not _served(device) or images.nbytes > free // SHARE:
            return images
    return images.to(device)


def placed(images: Tensor | Packed, device: torch.device) -> Tensor | Packed:
    """The images, on the device; packed ones stay on the CPU where only it has a kernel for their
    views."""
    if isinstance(images, Packed) and not _served(device):
        return images
    return images.to(device, non_blocking=True)


def _served(device: torch.device) -> bool:
    return backends.select("augment", device.type) != "reference"
