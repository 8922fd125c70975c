"""Images as people hold them, as rows of pixels: Pillow's, arrays, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastssl.ops.augment import Packed

# Pillow's modes that have more than 8 bits a channel: Pillow itself would cut them off at 255.
DEEP = ("I", "F")


def packed(images: Sequence[Any], channels: int | None = None) -> Packed:
    """Images of any sizes, one after the other.

    Args:
        images: what :func:`pixels` takes, at least one.
        channels: of all; None: of the first.

    Raises:
        TypeError, ValueError: as of :func:`pixels`, naming the image; there are none, or an image
            without pixels.
    """
    if not hasattr(images, "__len__"):
        raise TypeError(
            "images must be a batch, a uint8 tensor or a list of images, "
            f"not {type(images).__name__}"
        )
    if not len(images):
        raise ValueError("images must hold at least one")
    rows: list[Tensor] = []
    for i, image in enumerate(images):
        rows.append(pixels(image, channels, f"images[{i}]"))
        channels = channels or rows[0].shape[2]
    return Packed.of(rows)


def pixels(image: Any, channels: int | None = None, name: str = "image") -> Tensor:
    """An image as uint8 [H, W, C].

    Args:
        image: of Pillow, in any mode of 8 bits (other modes than grey become RGB); an array or
            tensor, uint8, [H, W], [H, W, C] or [C, H, W], C = 1 or 3. Where the last two could both
            be meant, a tensor is [C, H, W] and an array [H, W, C], as is the custom.
        channels: 3: a grey image has three equal ones; 1: it must be grey; None: as they are.
        name: what an error calls the image.

    Raises:
        TypeError: it is none of these, or not of 8 bits.
        ValueError: another shape, no pixels, colours where ``channels`` is 1.
    """
    if hasattr(image, "getbands"):
        x, planar_first = _of_pillow(image, name), False
    elif isinstance(image, Tensor):
        x, planar_first = image, True
    elif hasattr(image, "__array_interface__"):
        x, planar_first = _of_array(image, name), False
    else:
        raise TypeError(
            f"{name} must be an image of Pillow, an array or a tensor, not {type(image).__name__}"
        )
    if x.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8, 0 to 255, not {x.dtype}")
    if x.dim() == 2:
        x = x[:, :, None]
    elif x.dim() == 3 and x.shape[0] in (1, 3) and (planar_first or x.shape[2] not in (1, 3)):
        x = x.permute(1, 2, 0)
    if x.dim() != 3 or x.shape[2] not in (1, 3):
        raise ValueError(
            f"{name} must have shape [H, W], [H, W, C] or [C, H, W], C = 1 or 3, "
            f"not {list(x.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(f"{name} has no pixels: its shape is {list(x.shape)}")
    if channels == 1 and x.shape[2] == 3:
        raise ValueError(f"{name} must be grey where channels is 1, but has 3: convert it")
    return x.expand(-1, -1, 3) if channels == 3 else x


def _of_pillow(image: Any, name: str) -> Tensor:
    if image.mode.startswith(DEEP):
        raise TypeError(f"{name} must have 8 bits a channel, not Pillow's mode {image.mode}")
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{name} has no pixels: its size is {width} × {height}")
    data = bytearray(image.tobytes())  # which torch may hold on to
    return torch.frombuffer(data, dtype=torch.uint8).view(height, width, -1)


def _of_array(array: Any, name: str) -> Tensor:
    if not array.size:
        raise ValueError(f"{name} has no pixels: its shape is {list(array.shape)}")
    held = array.flags.writeable and min(array.strides, default=0) >= 0
    try:
        return torch.from_numpy(array if held else array.copy())
    except TypeError as error:  # text, objects, …
        raise TypeError(f"{name} must be uint8, 0 to 255, not {array.dtype}") from error
