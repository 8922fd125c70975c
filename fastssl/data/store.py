"""A set of image files whose batches are gathered once, whatever is kept of them."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl import augment
from fastssl.augment import Column, Packed
from fastssl.data.ahead import ahead
from fastssl.data.decode import Stored, UnreadableError
from fastssl.data.shelf import Reading, decoded, fill, in_words, read_file, unreadable
from fastssl.errors import UserError

TOGETHER = 64  # images in memory at once while many are brought to one size, or moved
COPIED = 2**20  # bytes at least that a thread copies
ELONGATED = 8  # times as long as high, or more: an image's ends are cut off before it is resized


@dataclass(frozen=True)
class Unreadable:
    """A file that was left out."""

    path: str
    reason: str


class ImageStore:
    """Images of any sizes, by their files.

    ``store.gather(indices)`` gives a batch as :class:`fastssl.augment.Packed`, every image in its
    own size, as recipes of :mod:`fastssl.augment` take it; ``store[indices]`` gives their middles
    in one size, as networks are judged by. What is kept between batches, and where,
    :class:`Reading` says. An EXIF orientation is followed, grey, palette, CMYK and 16-bit images
    become 8-bit RGB, of several frames the first counts; see :func:`fastssl.data.decode.decode`.

    Args:
        files: the images' paths, or :class:`fastssl.data.decode.Stored`.
        labels: a class number for each, or None.
        size: height and width of what ``store[indices]`` gives.
        crop: how much of the shorter side that holds: 0.875, which is 224 of 256, is usual for
            photographs, 1 for images that are small.
        channels: 3, or 1 for grey.
        reading: what is kept, where, and what becomes of files that cannot be read.

    Attributes:
        files: those that can be read, N, as far as is known.
        labels: theirs, int64 [N], or None.
        unreadable: the others, where they are skipped.
        sizes: int64 [N, 2], heights and widths.
        nbytes: of all pixels, decoded.
        keep: what is kept: decoded | encoded | files.

    Raises:
        UserError: there is no file that can be read, or one cannot that is not to be skipped; the
            memory, the disk or the cache does not serve.
    """

    def __init__(
        self,
        files: Sequence[Path | str | Stored],
        labels: Sequence[int] | None = None,
        *,
        size: int = 224,
        crop: float = 1.0,
        channels: int = 3,
        reading: Reading = Reading(),  # noqa: B008, it is frozen
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        if labels is not None and len(labels) != len(files):
            raise ValueError(f"labels must be {len(files)}, one a file, not {len(labels)}")
        paths = [Path(file) if isinstance(file, str) else file for file in files]
        if not paths:
            raise UserError("there are no images")
        shelf = fill(paths, channels, reading)
        self.unreadable = tuple(Unreadable(str(paths[i]), r) for i, r in shelf.unreadable.items())
        if len(shelf.rows) == 0:
            first = self.unreadable[0]
            raise UserError(
                f"none of {len(paths)} images can be read; the first, {first.path}: {first.reason}"
            )
        self.files = [paths[i] for i in shelf.rows.tolist()]
        self.labels = None if labels is None else torch.tensor(labels)[shelf.rows].long()
        self.shape = (channels, size, size)
        self.crop = _checked(crop)
        self.sizes = shelf.sizes
        self.nbytes = int(shelf.sizes.prod(dim=1).sum()) * channels
        self.keep = shelf.keep
        self._hold(shelf.data, shelf.offsets, shelf.counts)
        self._max_side = reading.max_side
        self._pool = ThreadPoolExecutor(reading.workers, thread_name_prefix="gather")
        # Pixels that are in memory as they are need no copy, and pages of a disk better come from
        # it in a thread, ahead of their use.
        whole = shelf.keep == "decoded" and not shelf.mapped
        self._packed = self._all(shelf.data, shelf.offsets, shelf.sizes) if whole else None

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, indices: Tensor, *, pin: bool = False) -> Packed:
        """A batch, its images in the order of the indices.

        Pixels in memory (without ``pin``) or on a device are referred to where they are, and must
        not be written to. Others are written once, straight into the batch's own memory.

        Args:
            indices: int64 [B], each in [0, N).
            pin: into page-locked memory, from which a copy to a GPU need not be waited for.

        Returns:
            uint8, on the CPU, or on the device of :meth:`to`.

        Raises:
            ValueError: indices of another dtype or shape, or none.
            IndexError: an index that is no image's.
            UserError: an image cannot be read.
        """
        self._check(indices)
        if self._packed is not None and not (pin and self._packed.device.type == "cpu"):
            every = self._packed
            which = indices.to(every.device, non_blocking=True)
            return Packed(every.data, every.offsets[which], every.sizes[which], every.channels)
        sizes = self.sizes[indices.cpu()]
        counts = sizes.prod(dim=1) * self.shape[0]
        offsets = counts.cumsum(0) - counts
        data = torch.empty(int(counts.sum()), dtype=torch.uint8, pin_memory=pin)
        out, rows = data.numpy(), indices.cpu().numpy()
        ends = (offsets + counts).tolist()
        places = [slice(*pair) for pair in zip(offsets.tolist(), ends, strict=True)]

        def write(some: slice) -> None:
            if self._table is not None:  # without a step of Python for each small image
                into = out.reshape(len(rows), -1)[some]
                np.take(self._table, rows[some], axis=0, out=into, mode="clip")
                return
            for row, place in zip(rows[some], places[some], strict=True):
                out[place] = self._pixels(row)

        # As many parts at a time as there are threads; the first error is that of the first image.
        step = max(1, COPIED * len(rows) // len(data)) if self.keep == "decoded" else 1
        list(self._pool.map(write, (slice(i, i + step) for i in range(0, len(rows), step))))
        return Packed(data, offsets, sizes, self.shape[0])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The images' middles, of the share ``crop``; see :meth:`middles`."""
        return self.middles(indices, self.crop)

    def middles(self, indices: Tensor, crop: float = 1.0) -> Tensor:
        """Squares in the middle of the images: the shorter side is resized to ``size / crop``, and
        ``size`` pixels are kept, as by torchvision's ``Resize`` and ``CenterCrop`` on uint8 tensors
        (bilinear, antialiased), bit by bit.

        Args:
            indices: int64 [B], B ≥ 1.
            crop: share of the shorter side, in (0, 1].

        Returns:
            uint8 [B, C, size, size], on the CPU.
        """
        self._check(indices)
        _checked(crop)
        out = torch.empty((len(indices), *self.shape), dtype=torch.uint8)
        for part, into in zip(indices.split(TOGETHER), out.split(TOGETHER), strict=True):
            sizes = self.sizes[part.cpu()]
            into.copy_(middles(self.gather(part), sizes, self.shape[1], crop))
        return out

    def framed(self, crop: float) -> ImageStore:
        """The same images, judged by a middle of another share."""
        other = copy.copy(self)
        other.crop = _checked(crop)
        return other

    def batches(
        self, order: Iterable[Tensor], *, depth: int = 2, pin: bool = False
    ) -> Generator[tuple[Packed, Tensor, Tensor | None], None, None]:
        """Batches, their indices and labels, gathered in a thread ahead of their use.

        The i-th is a function of the i-th indices alone: a run goes on where it stopped by
        ``itertools.islice(order, steps_done, None)``.

        Args:
            order: int64 indices of each batch.
            depth: batches ready or in the making beyond the one in use.
            pin: as of :meth:`gather`.

        Raises:
            What :meth:`gather` raises, in the place of that batch.
        """

        def load(indices: Tensor) -> tuple[Packed, Tensor, Tensor | None]:
            labels = None if self.labels is None else self.labels[indices]
            return self.gather(indices, pin=pin), indices, labels

        return ahead(load, order, depth=depth)

    def to(self, device: torch.device | str) -> ImageStore:
        """The same images with their pixels in a device's memory, ``nbytes`` of it; batches are
        then gathered there, without a copy.

        Raises:
            UserError: they do not fit, or one cannot be read.
        """
        device = torch.device(device)
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if self.nbytes > free:
                raise UserError(
                    f"these images take {in_words(self.nbytes)}, {in_words(free)} are free "
                    f"on {device}"
                )
        counts = self.sizes.prod(dim=1) * self.shape[0]
        offsets = counts.cumsum(0) - counts
        data = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        parts = torch.arange(len(self)).split(TOGETHER)
        for part, batch in zip(parts, ahead(self._contiguous, parts), strict=True):
            begin = int(offsets[part[0]])
            data[begin : begin + len(batch)] = batch.to(device)
        there = copy.copy(self)
        there._packed = self._all(data, offsets.to(device), self.sizes.to(device))
        there.keep = "decoded"
        there._hold(data if device.type == "cpu" else None, offsets, counts)
        return there

    def _hold(self, data: Tensor | None, offsets: Tensor, counts: Tensor) -> None:
        """Where the bytes of each image are, in memory or mapped."""
        self._memory = np.empty(0, np.uint8) if data is None else data.numpy()
        self._begins, self._ends = offsets.numpy(), (offsets + counts).numpy()
        each, total = int(counts[0]), len(self._memory)
        alike = (
            bool((self._begins == np.arange(len(counts)) * each).all()) and counts.eq(each).all()
        )
        rows = self.keep == "decoded" and alike and total == each * len(counts)
        self._table = self._memory.reshape(len(counts), each) if rows else None  # [N, H·W·C]

    def _contiguous(self, rows: Tensor) -> Tensor:
        """The pixels of these images, one after the other."""
        batch = self.gather(rows)
        ends = batch.sizes.prod(dim=1) * batch.channels + batch.offsets
        if self._packed is None:
            return batch.data
        pairs = zip(batch.offsets.tolist(), ends.tolist(), strict=True)
        return torch.cat([batch.data[begin:end] for begin, end in pairs])

    def _all(self, data: Tensor | None, offsets: Tensor, sizes: Tensor) -> Packed:
        assert data is not None
        return Packed(data, offsets, sizes, self.shape[0])

    def _pixels(self, row: int) -> np.ndarray:
        """Pixels of one image, uint8 [H·W·C]."""
        begin, end = self._begins[row], self._ends[row]
        if self.keep == "decoded":
            return self._memory[begin:end]
        height, width = self.sizes[row].tolist()
        try:
            encoded = self.keep == "encoded"
            raw = self._memory[begin:end].data if encoded else read_file(self.files[row])
            return decoded(raw, (height, width), self.shape[0], self._max_side)
        except UnreadableError as error:
            raise unreadable(self.files[row], str(error)) from error

    def _check(self, indices: Tensor) -> None:
        if indices.dtype != torch.int64 or indices.dim() != 1 or len(indices) == 0:
            raise ValueError(
                "indices must be int64 of shape [B], at least one, "
                f"not {indices.dtype} of shape {list(indices.shape)}"
            )
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= len(self):
            wrong = low if low < 0 else high
            raise IndexError(f"indices must lie in [0, {len(self)}), not {wrong}")


def middles(images: Packed, sizes: Tensor, side: int, crop: float) -> Tensor:
    """As of :meth:`ImageStore.middles`: uint8 [B, C, side, side], on the images' device.

    Args:
        images: B of them.
        sizes: theirs, int64 [B, 2], on the CPU.
        side: in pixels.
        crop: share of the shorter side.
    """
    short = round(side / crop)
    out = images.data.new_empty((len(images), images.channels, side, side))
    alike, group = sizes.unique(dim=0, return_inverse=True)
    for i, (height, width) in enumerate(alike.tolist()):
        which = (group == i).nonzero().flatten().to(images.device)
        some = Packed(images.data, images.offsets[which], images.sizes[which], images.channels)
        least = min(height, width)
        kept = [min(length, ELONGATED * least) for length in (height, width)]
        view = augment.View(tuple(short * length // least for length in kept))
        recipe = augment.Recipe((view,), mean=(0.0,), std=(1.0,), quantized=True)
        (rows,) = recipe.parameters(some, torch.zeros_like(which), 0)
        for n, (length, part) in enumerate(zip((height, width), kept, strict=True)):
            rows[:, Column.TOP + n], rows[:, Column.HEIGHT + n] = (length - part) // 2, part
        (x,) = recipe.apply(some, [rows])  # [b, C, …], one side of them short
        top, left = (round((pixels - side) / 2) for pixels in view.shape)
        out[which] = (x[:, :, top : top + side, left : left + side] * 255).round().to(torch.uint8)
    return out


def _checked(crop: float) -> float:
    if not 0 < crop <= 1:  # NaN as well
        raise ValueError(f"crop must be a share, in (0, 1], not {crop}")
    return crop
