"""Recipes where people augment today: a module for any loop, a collate function for loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from fastssl.augment.pixels import packed
from fastssl.augment.recipes import Recipe
from fastssl.ops.augment import DTYPES, Packed
from fastssl.ops.checks import check_seed


class Augment(nn.Module):
    """Views of a batch, other ones at each call: ``views = Augment(simclr())(images)``.

    What happens to a row is a function of (seed, number of the call, its number in the batch). The
    call's number is in the ``state_dict``, so that a run that is resumed goes on with the views it
    would have had. Keep it outside of what ``torch.compile`` compiles, for which such a number is a
    constant; the recipe, whose seed is an argument, may be within.

    Args:
        recipe: what is done.
        seed: 0 to 2^64 − 1. Processes that share a batch need one each, or global ``indices``.
        dtype: of the views: float32, bfloat16 or float16.
        channels_last: their memory format.

    Attributes:
        calls: how many there were.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        _check(recipe, seed, dtype)
        self.recipe, self.seed = recipe, seed
        self.dtype, self.channels_last = dtype, channels_last
        self.calls = 0

    def forward(
        self, images: Tensor | Packed | Sequence[Any], indices: Tensor | None = None
    ) -> list[Tensor]:
        """Random views.

        Args:
            images: uint8 [B, C, H, W] or [B, H, W, C], packed, or B images of any sizes: of
                Pillow, arrays or tensors.
            indices: int64 [B], numbers that distinguish the samples; None: 0 to B − 1.

        Returns:
            A tensor for each view, as of :class:`fastssl.augment.Recipe`.

        Raises:
            TypeError, ValueError: as of the recipe, or an image in the list is none.
        """
        batch = images if isinstance(images, Tensor | Packed) else packed(images)
        if indices is None:
            device = batch.data.device if isinstance(batch, Packed) else batch.device
            indices = torch.arange(len(batch), device=device)
        seed = seed_of(self.seed, self.calls)
        views = self.recipe(
            batch, indices, seed, dtype=self.dtype, channels_last=self.channels_last
        )
        self.calls += 1
        return views

    def get_extra_state(self) -> dict[str, int]:
        """Seed and calls."""
        return {"seed": self.seed, "calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Those of a ``state_dict``."""
        self.seed, self.calls = int(state["seed"]), int(state["calls"])

    def extra_repr(self) -> str:
        return f"{self.recipe}, seed={self.seed}"


class Sample(NamedTuple):
    """An item of a data set, and where it stands there."""

    number: int
    item: Any


class Numbered(Dataset):
    """A data set that says which item it gives: ``Numbered(data)[i] == Sample(i, data[i])``."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.data[index])


class Collate:
    """A ``collate_fn`` that makes views of a batch of images in one call::

        collate = Collate(simclr(), seed=1)
        loader = DataLoader(Numbered(data), 256, shuffle=True, num_workers=2, collate_fn=collate)
        for epoch in range(100):
            collate.set_epoch(epoch)
            for (view0, view1), labels in loader:
                ...

    In place of its image an item of ``data`` gets a list of views, [B, C, height, width] each; what
    else is in it is joined as torch does. An item that is an image alone becomes that list.

    What happens to a sample is a function of (seed, epoch, its number, the view): the same with any
    number of workers, any order and batch size. The number is :class:`Numbered`'s; the epoch is in
    memory that all workers share, so that also those that live on (``persistent_workers``) see it.
    Without ``set_epoch`` every epoch has the same views. Without :class:`Numbered`, as with data
    sets that have no numbers, samples draw one from torch's generator: then each epoch differs by
    itself, and is repeatable for one number of workers only.

    Args:
        recipe: what is done.
        seed: 0 to 2^64 − 1.
        image: where in an item the image is: a position, or a key where items are mappings.
        channels: 3: grey images have three equal ones; 1: all must be grey.
        dtype: of the views: float32, bfloat16 or float16.
        channels_last: their memory format.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int = 0,
        *,
        image: int | str = 0,
        channels: int = 3,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        _check(recipe, seed, dtype)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        self.recipe, self.seed, self.image, self.channels = recipe, seed, image, channels
        self.dtype, self.channels_last = dtype, channels_last
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """As it was set last, or 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Other views from the next epoch on; call it before iterating, as a sampler's."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, but is {epoch}")
        self._epoch.fill_(epoch)

    def __call__(self, items: Sequence[Any]) -> Any:
        """A batch of B items, images of Pillow, arrays or tensors of any sizes in them.

        Raises:
            TypeError, ValueError: there are none, one has no image in that place, or it is none.
        """
        if not items:
            raise ValueError("items must hold at least one")
        if isinstance(items[0], Sample):
            indices = torch.tensor([sample.number for sample in items])
            seed = seed_of(self.seed, self.epoch)
            items = [sample.item for sample in items]
        else:
            indices = torch.randint(2**63 - 1, (len(items),))
            seed = self.seed
        images = packed([self._image(item) for item in items], self.channels)
        views = self.recipe(
            images, indices, seed, dtype=self.dtype, channels_last=self.channels_last
        )
        first = items[0]
        if isinstance(first, Mapping):
            rest = [{k: v for k, v in item.items() if k != self.image} for item in items]
            return {**default_collate(rest), self.image: views} if rest[0] else {self.image: views}
        if isinstance(first, tuple | list):
            place = int(self.image) % len(first)
            columns = list(zip(*items, strict=True))
            return tuple(
                views if i == place else default_collate(list(column))
                for i, column in enumerate(columns)
            )
        return views

    def _image(self, item: Any) -> Any:
        if not isinstance(item, Mapping | tuple | list):
            return item
        try:
            return item[self.image]  # type: ignore[index]
        except (LookupError, TypeError) as error:
            what = list(item) if isinstance(item, Mapping) else f"{len(item)} in each"
            raise ValueError(
                f"image must say where items have their image, not {self.image!r}: they have {what}"
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._epoch.share_memory_()  # a copy's workers share its own


def seed_of(seed: int, count: int) -> int:
    """A seed for each of many epochs or calls: far apart for seeds that are near each other."""
    return (seed + count * 0x9E3779B97F4A7C15) % 2**64


def _check(recipe: Recipe, seed: int, dtype: torch.dtype) -> None:
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a fastssl.augment.Recipe, not {type(recipe).__name__}")
    check_seed(seed)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
