"""Sets of images: in memory, or decoded as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastssl.data.decode import as_mode
from fastssl.data.store import ImageStore, Unreadable
from fastssl.errors import UserError


class Images(Protocol):
    """N images of one shape, with labels or without."""

    shape: tuple[int, int, int]  # C, H, W
    labels: Tensor | None  # int64 [N]

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Tensor) -> Tensor:
        """uint8 [B, C, H, W] for int64 indices [B], all on the CPU."""
        ...


@dataclass(frozen=True)
class Split:
    """Images to train on and images to judge by, never the same."""

    train: Images
    test: Images | None  # None: there is no way to judge, as without labels
    recipe: str  # the views that suit these images, a name in RECIPES

    @property
    def unreadable(self) -> list[Unreadable]:
        """Files that were left out of either part."""
        parts = (part for part in (self.train, self.test) if isinstance(part, ImageStore))
        return [file for part in parts for file in part.unreadable]


class TensorImages:
    """Images in memory: uint8 [N, C, H, W]; labels int64 [N] or None."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.shape = (images.shape[1], images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.gather(indices).cpu()

    @property
    def nbytes(self) -> int:
        return self.images.numel()

    def to(self, device: torch.device | str) -> TensorImages:
        """The same images in a device's memory."""
        return TensorImages(self.images.to(device), self.labels)

    def gather(self, indices: Tensor, *, pin: bool = False) -> Tensor:
        """Images on the device that they are on; from the CPU, if so wanted, in page-locked
        memory."""
        device = self.images.device
        out = torch.empty(
            (len(indices), *self.shape),
            dtype=torch.uint8,
            device=device,
            pin_memory=pin and device.type == "cpu",
        )
        rows = indices.to(device, non_blocking=True)
        return torch.index_select(self.images, 0, rows, out=out)


class FileImages:
    """Images decoded when asked for, by several threads.

    Args:
        open_image: from i to the i-th image, of any size and mode.
        name: from i to what a user calls it, for the error that says it is broken.
        count: N.
        labels: N class numbers, or None.
        size: H = W; the image is scaled until its short side fits, and its centre kept.
        channels: 3, or 1 for grey.
        workers: threads.

    Raises:
        UserError: on being asked for an image that cannot be read.
    """

    def __init__(
        self,
        open_image: Callable[[int], Image.Image],
        name: Callable[[int], str],
        count: int,
        labels: Sequence[int] | None,
        *,
        size: int,
        channels: int = 3,
        workers: int = 4,
    ) -> None:
        self._open_image = open_image
        self._name = name
        self._count = count
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.shape = (channels, size, size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, indices: Tensor) -> Tensor:
        return torch.stack(list(self._workers.map(self._decode, indices.tolist())))

    def _decode(self, i: int) -> Tensor:
        try:
            return self._pixels(self._open_image(i))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{self._name(i)}: not a readable image: {error}") from error

    def _pixels(self, image: Image.Image) -> Tensor:
        channels, size, _ = self.shape
        image.draft(None, (size, size))  # a JPEG may decode at ½, ¼ or ⅛ of its size
        image = as_mode(image, channels)
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
        pixels = torch.from_numpy(np.array(image))  # [H, W] or [H, W, C]
        return pixels.view(size, size, channels).permute(2, 0, 1)
