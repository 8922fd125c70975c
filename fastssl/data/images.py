"""Sets of images, and what training and judging take of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastssl.data.store import ImageStore, Unreadable


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

    def framed(self, crop: float | None) -> Split:
        """The same, of files judged by a middle of another share; see :class:`ImageStore`. None:
        as it is."""
        if crop is None or not isinstance(self.train, ImageStore):
            return self
        test = self.test.framed(crop) if isinstance(self.test, ImageStore) else self.test
        return replace(self, train=self.train.framed(crop), test=test)


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
