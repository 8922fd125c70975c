"""Batches of image files are the same whatever is kept of them, and corrupt files are named."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl import augment
from fastssl.data import ImageStore, Reading, shelf
from fastssl.data.decode import decode
from fastssl.errors import UserError
from tests.data.stored import N, assert_images, cut, unpacked
from tests.functional.comparison import peer

KINDS = [(keep, cached) for keep in ("decoded", "encoded", "files") for cached in (False, True)]
kinds = pytest.mark.parametrize(("keep", "cached"), KINDS)


# what is kept


@kinds
def test_a_batch_holds_the_images_asked_for(files, tmp_path, keep, cached):
    reading = Reading(keep=keep, cache=tmp_path / "cache" if cached else None, workers=3)
    for _ in range(2):  # the second finds what the first wrote
        store = ImageStore(files, list(range(N)), size=16, reading=reading)
        assert (len(store), store.keep, store.shape) == (N, keep, (3, 16, 16))
        assert store.labels.tolist() == list(range(N))
        assert store.nbytes == sum(decode(file).size for file in files)
        for rows in ([0], [5, 3, 5, 22], list(range(N))):
            assert_images(store.gather(torch.tensor(rows)), [files[i] for i in rows])


@kinds
def test_views_are_those_of_the_files_whatever_is_kept(files, tmp_path, keep, cached):
    reading = Reading(keep=keep, cache=tmp_path / "cache" if cached else None)
    indices = torch.tensor([4, 0, 19, 7])
    batch = ImageStore(files, reading=reading).gather(indices)
    images = [torch.tensor(decode(files[i])) for i in indices]
    expected = augment.simclr(24)(augment.Packed.of(images), indices, 3)
    for view, other in zip(augment.simclr(24)(batch, indices, 3), expected, strict=True):
        assert torch.equal(view, other)


def test_pixels_in_memory_are_not_copied(files):
    store = ImageStore(files, reading=Reading(keep="decoded"))
    first, other = (store.gather(torch.tensor(rows)) for rows in ([1, 2], [7]))
    assert first.data.data_ptr() == other.data.data_ptr()
    assert first.data.numel() == store.nbytes


@pytest.mark.parametrize("keep", ["encoded", "files"])
def test_images_moved_are_the_same(files, keep):
    store = ImageStore(files, reading=Reading(keep=keep))
    moved, rows = store.to("cpu"), torch.tensor([9, 2, 9])
    assert_images(moved.gather(rows), [files[i] for i in rows])
    assert moved.gather(rows).data.numel() == store.nbytes
    assert torch.equal(moved[rows], store[rows])
    for file in files:
        file.unlink()  # nothing is read any more
    assert len(moved.gather(torch.arange(N))) == N
    if keep == "files":
        with pytest.raises(UserError, match=f"{files[9]}: not a readable image: No such file"):
            store.gather(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_on_a_gpu(files):
    store, rows = ImageStore(files), torch.tensor([9, 2, 9])
    there = store.to("cuda").gather(rows)
    assert there.data.device.type == there.sizes.device.type == "cuda"
    assert_images(there, [files[i] for i in rows])
    pinned = store.gather(rows, pin=True)
    assert pinned.data.is_pinned()
    assert_images(pinned.to("cuda"), [files[i] for i in rows])


@pytest.mark.parametrize("spoiled", [(), (11,), (0, 22)])
def test_images_of_one_size(files, tmp_path, spoiled):
    for i, file in enumerate(files):
        Image.fromarray(np.full((6, 8, 3), i, np.uint8)).save(file)
    for i in spoiled:
        cut(files[i], 0.5)
    good = [file for i, file in enumerate(files) if i not in spoiled]
    reading = Reading(cache=tmp_path / "cache", on_corrupt="skip")
    store = ImageStore(files, reading=reading)
    assert len(store) == len(good)
    rows = torch.tensor([5, 0, len(good) - 1, 5])
    assert_images(store.gather(rows), [good[i] for i in rows])
    assert_images(store.to("cpu").gather(rows), [good[i] for i in rows])


def test_many_bytes_are_copied_in_parts(files, tmp_path, monkeypatch):
    monkeypatch.setattr("fastssl.data.store.COPIED", 3000)
    store = ImageStore(files, reading=Reading(cache=tmp_path / "cache"))
    rows = torch.randperm(N)
    assert_images(store.gather(rows), [files[i] for i in rows])


def test_auto_keeps_what_fits(files, tmp_path, monkeypatch):
    nbytes = ImageStore(files).nbytes
    for free, expected in ((2 * nbytes, "decoded"), (2 * nbytes - 1, "files")):
        monkeypatch.setattr(shelf, "free_memory", lambda free=free: free)
        assert ImageStore(files).keep == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(shelf, "free_memory", lambda: 2 * nbytes)
    assert ImageStore(files).keep == "files"
    monkeypatch.setattr(shelf, "free_memory", lambda: 10)
    cached = ImageStore(files, reading=Reading(cache=tmp_path / "cache"))  # the disk holds more
    assert cached.keep == "decoded"
    assert_images(cached.gather(torch.arange(N)), files)
    with pytest.raises(UserError, match=r"decoded, these images take .* MiB, and 0.0 MiB of mem"):
        ImageStore(files, reading=Reading(keep="decoded"))


def test_free_memory_is_some_but_not_more_than_there_is():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < shelf.free_memory() <= total


def test_larger_images_are_made_smaller(files):
    for keep in ("decoded", "encoded", "files"):
        store = ImageStore(files, reading=Reading(keep=keep, max_side=20))
        assert store.sizes.max() == 20
        for image, file in zip(unpacked(store.gather(torch.arange(N))), files, strict=True):
            assert np.array_equal(image, decode(file, max_side=20))


@pytest.mark.parametrize(("crop", "short"), [(1.0, 28), (0.875, 32), (0.4, 70)])
@pytest.mark.parametrize("keep", ["decoded", "files"])
def test_one_size_is_torchvisions_for_judging(files, keep, crop, short):
    v2 = peer("torchvision.transforms.v2", "torchvision")
    judged = v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(28)])
    store = ImageStore(files, size=28, crop=crop, reading=Reading(keep=keep))
    whole = store[torch.arange(N)]
    assert whole.dtype == torch.uint8
    pixels = [torch.from_numpy(decode(file).copy()).permute(2, 0, 1) for file in files]
    assert torch.equal(whole, torch.stack([judged(image) for image in pixels]))
    assert torch.equal(store[torch.tensor([4, 1, 4])], whole[[4, 1, 4]])
    assert torch.equal(ImageStore(files, size=28).framed(crop)[torch.arange(N)], whole)
    assert torch.equal(store.middles(torch.arange(2)), ImageStore(files, size=28)[torch.arange(2)])


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (2, 1), (9, 200)])
def test_the_middle_of_a_long_image(shape, tmp_path):
    """Its ends are cut off, or resized it would have millions of pixels."""
    pixels = np.zeros((*shape, 3), np.uint8)
    axis = shape.index(max(shape))
    pixels[:] = (
        np.linspace(0, 255, max(shape)).round().reshape((-1, 1, 1) if axis == 0 else (-1, 1))
    )
    Image.fromarray(pixels).save(tmp_path / "long.png")
    (image,) = ImageStore([tmp_path / "long.png"], size=224, crop=0.875)[torch.tensor([0])]
    middle = image.float().mean()
    assert middle == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("crop", [0.0, 1.5, -1.0, float("nan")])
def test_shares_that_are_none(files, crop):
    for attempt in (
        lambda: ImageStore(files, crop=crop),
        lambda: ImageStore(files).framed(crop),
        lambda: ImageStore(files).middles(torch.arange(1), crop),
    ):
        with pytest.raises(ValueError, match=r"crop must be a share, in \(0, 1\]"):
            attempt()


def test_channels_of_one_size(files):
    grey = ImageStore(files, size=12, channels=1)
    assert grey[torch.arange(3)].shape == (3, 1, 12, 12)
    batch = grey.gather(torch.tensor([4]))
    pixels = batch.data[int(batch.offsets) :][: batch.sizes.prod()].numpy()
    assert np.array_equal(pixels, decode(files[4], 1).ravel())


class InATable:
    """An image that lies in no file of its own."""

    state = "as it was"

    def __init__(self, file, broken=False):
        self.file, self.broken = file, broken

    def __str__(self):
        return f"a table, image {self.file.stem}"

    def read_bytes(self):
        if self.broken:
            raise OSError("there is none")
        return self.file.read_bytes()


@kinds
def test_images_in_no_file_of_their_own(files, tmp_path, keep, cached):
    cache = tmp_path / "cache" if cached else None
    images = [InATable(file, i == 3) for i, file in enumerate(files)]
    with pytest.raises(UserError, match="a table, image 03: not a readable image: there is none"):
        ImageStore(images, reading=Reading(keep=keep, cache=cache))
    reading = Reading(keep=keep, cache=cache, on_corrupt="skip")
    rest = [file for i, file in enumerate(files) if i != 3]
    for _ in range(2):
        store = ImageStore(images, list(range(N)), reading=reading)
        assert [file.path for file in store.unreadable] == ["a table, image 03"]
        assert_images(store.gather(torch.arange(N - 1)), rest)
    for image in images:
        image.state, image.broken = "another", False
    assert len(ImageStore(images, reading=reading)) == N


def own_memory():
    """Bytes of this process's own, pages of files not among them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("keep", ["decoded", "encoded", "files"])
def test_a_folder_larger_than_memory(tmp_path, keep):
    """The own memory holds a few images, never all of them."""
    for i in range(80):
        Image.new("RGB", (1000, 750), (3 * i, 0, 0)).save(tmp_path / f"{i:02}.jpg")
    cache = tmp_path / "cache" if keep == "decoded" else None
    before = own_memory()
    reading = Reading(keep=keep, cache=cache, workers=2)
    store = ImageStore(sorted(tmp_path.glob("*.jpg")), reading=reading)
    most = own_memory()
    for batch, rows, _ in store.batches(torch.arange(80).split(1), depth=1):
        most = max(most, own_memory())
        assert abs(int(batch.data[batch.offsets]) - 3 * int(rows)) <= 2
    assert store.nbytes == 80 * 2_250_000
    assert most - before < store.nbytes / 2


# the iterator


@pytest.mark.parametrize("keep", ["decoded", "encoded"])
def test_batches_go_on_where_they_stopped(files, keep):
    store = ImageStore(files, list(range(N)), reading=Reading(keep=keep))

    def order():
        for epoch in itertools.count():
            generator = torch.Generator().manual_seed(epoch)
            yield from torch.randperm(N, generator=generator).split(5)

    first = list(itertools.islice(store.batches(order()), 12))
    again = itertools.islice(store.batches(itertools.islice(order(), 7, None)), 5)
    for (a, i, y), (b, j, z) in zip(first[7:], again, strict=True):
        assert torch.equal(i, j)
        assert y.tolist() == z.tolist() == i.tolist()
        assert all(map(np.array_equal, unpacked(a), unpacked(b)))


def test_an_error_ends_the_batches_in_its_place(files):
    store = ImageStore(files, reading=Reading(keep="files"))
    cut(files[6])
    batches = store.batches(torch.arange(N).split(3))
    assert_images(next(batches)[0], files[:3])
    assert_images(next(batches)[0], files[3:6])
    with pytest.raises(UserError, match=f"{files[6]}: not a readable image: .*truncated"):
        next(batches)


# corrupt files


@kinds
def test_corrupt_files_are_skipped_and_named(files, tmp_path, keep, cached):
    cut(files[4])
    files[9].write_bytes(b"")
    cut(files[22])
    cache = tmp_path / "cache" if cached else None
    reading = Reading(keep=keep, cache=cache, on_corrupt="skip")
    good = [i for i in range(N) if i not in (4, 9, 22)]
    for _ in range(2):
        store = ImageStore(files, list(range(N)), reading=reading)
        assert [file.path for file in store.unreadable] == [str(files[i]) for i in (4, 9, 22)]
        assert "truncated" in store.unreadable[0].reason
        assert store.unreadable[1].reason == "no image of a known format"
        assert store.labels.tolist() == good
        assert_images(store.gather(torch.arange(len(store))), [files[i] for i in good])
        assert store.nbytes == sum(decode(files[i]).size for i in good)
        moved = store.to("cpu")
        assert_images(moved.gather(torch.arange(len(store))), [files[i] for i in good])


@kinds
def test_corrupt_files_are_raised(files, tmp_path, keep, cached):
    cut(files[4])
    cut(files[9])
    cache = tmp_path / "cache" if cached else None
    reading = Reading(keep=keep, cache=cache)
    with pytest.raises(UserError, match=f"{files[4]}: not a readable image: .*truncated"):
        ImageStore(files, reading=reading).gather(torch.arange(N))
    if keep == "decoded" and cached:
        assert not list(cache.glob("*.bin"))
        assert not list(cache.glob("*.tmp"))
        ImageStore(files, reading=Reading(cache=cache, on_corrupt="skip"))
        with pytest.raises(UserError, match=f"{files[4]}: not a readable image"):
            ImageStore(files, reading=reading)  # what the other wrote names it as well


def test_nothing_that_can_be_read(files):
    for file in files:
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=f"none of {N} images can be read; the first, {files[0]}: "):
        ImageStore(files, reading=Reading(on_corrupt="skip"))
    with pytest.raises(UserError, match="there are no images"):
        ImageStore([])


# wrong input


@pytest.mark.parametrize(
    ("indices", "error", "says"),
    [
        (torch.tensor([], dtype=torch.int64), ValueError, "at least one"),
        (torch.tensor([1, 2], dtype=torch.int32), ValueError, "must be int64 of shape"),
        (torch.tensor([[1, 2]]), ValueError, r"not torch.int64 of shape \[1, 2\]"),
        (torch.tensor([0, N]), IndexError, rf"must lie in \[0, {N}\), not {N}"),
        (torch.tensor([0, -1]), IndexError, rf"must lie in \[0, {N}\), not -1"),
    ],
)
def test_wrong_indices(files, indices, error, says):
    store = ImageStore(files)
    for read in (store.gather, store.__getitem__):
        with pytest.raises(error, match=says):
            read(indices)


def test_wrong_options(files):
    for wrong in ({"keep": "all"}, {"on_corrupt": "ignore"}, {"max_side": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            Reading(**wrong)
    with pytest.raises(ValueError, match="channels must be 1 or 3, not 4"):
        ImageStore(files, channels=4)
    with pytest.raises(ValueError, match=f"labels must be {N}, one a file, not 2"):
        ImageStore(files, [0, 1])
