"""Where batches are read from and where they go, for every kind of images and of views."""

from __future__ import annotations

import types

import pytest
import torch
from PIL import Image

from fastssl.augment import Packed
from fastssl.data import ImageStore, TensorImages, build_recipe, feed, placed, reader, resident

PHOTO, STROKES = build_recipe("small", 16), build_recipe("digits")
ROWS = torch.tensor([2, 0, 2])


@pytest.fixture
def store(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (20 + i, 30), (i, 0, 0)).save(file)
    return ImageStore(files, size=16)


@pytest.fixture
def tensor():
    return TensorImages(torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8), torch.arange(3))


class Others:
    """A user's own images."""

    shape, labels = (3, 16, 16), None

    def __len__(self):
        return 3

    def __getitem__(self, indices):
        return indices[:, None, None, None].expand(-1, 3, 16, 16).to(torch.uint8)


def test_photographs_are_read_as_they_are_by_views_that_take_them(store, tensor):
    batch = reader(store, PHOTO)(ROWS)
    assert isinstance(batch, Packed)
    assert batch.sizes.tolist() == [[30, 22], [30, 20], [30, 22]]
    for recipe in (STROKES, lambda images, indices, seed: [images]):  # a user's own
        assert torch.equal(reader(store, recipe)(ROWS), store[ROWS])
    for recipe in (PHOTO, STROKES):
        assert torch.equal(reader(tensor, recipe)(ROWS), tensor.images[ROWS])
        assert torch.equal(reader(Others(), recipe)(ROWS)[:, 0, 0, 0], ROWS.to(torch.uint8))


def test_tensors_in_memory(tensor):
    assert torch.equal(tensor[ROWS], tensor.images[ROWS])
    assert torch.equal(tensor.gather(ROWS), tensor.images[ROWS])
    moved = tensor.to("cpu")
    assert torch.equal(moved[ROWS], tensor[ROWS])
    assert torch.equal(moved.labels, tensor.labels)
    assert tensor.nbytes == 3 * 3 * 16 * 16


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("kind", ["store", "tensor"])
@pytest.mark.parametrize(
    ("free", "served", "wanted", "moves"),
    [
        (4, True, None, True),  # a quarter of the free memory holds them
        (3.99, True, None, False),
        (100, False, None, False),  # views are made on the CPU
        (100, True, False, False),
        (1, False, True, True),  # in any case
    ],
)
def test_images_live_on_a_gpu_where_they_fit(
    request, monkeypatch, kind, free, served, wanted, moves
):
    images = request.getfixturevalue(kind)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * images.nbytes), 0))
    monkeypatch.setattr(feed, "_served", lambda _: served)
    images.to = lambda device: types.SimpleNamespace(device=device)
    there = resident(images, CUDA, wanted)
    assert (there is images) != moves
    assert getattr(there, "device", None) == (CUDA if moves else None)


def test_others_stay_where_they_are(store):
    others = Others()
    assert resident(others, CUDA, True) is others
    assert resident(store, torch.device("cpu"), True) is store


def test_too_many_for_a_gpu_are_refused(store, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (store.nbytes - 1, 0))
    with pytest.raises(ValueError, match=r"these images take .* MiB, .* are free on cuda:0"):
        resident(store, CUDA, True)


def test_packed_images_wait_where_their_views_are_made(store, tensor, monkeypatch):
    meta = torch.device("meta")  # stands for a device
    batch = store.gather(ROWS)
    monkeypatch.setattr(feed, "_served", lambda _: False)
    assert placed(batch, meta) is batch
    assert placed(tensor[ROWS], meta).device == meta  # PhotoViews takes these back itself
    monkeypatch.setattr(feed, "_served", lambda _: True)
    assert placed(batch, meta).device == placed(batch, meta).sizes.device == meta
