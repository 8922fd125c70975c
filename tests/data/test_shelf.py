"""A cache of decoded images: read while its files stay as they are, never when it is broken."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from fastssl.data import ImageStore, Reading, shelf
from fastssl.errors import UserError
from tests.data.stored import N, assert_images


def test_a_cache_is_read_while_its_files_stay_as_they_are(files, tmp_path, monkeypatch):
    reading = Reading(cache=tmp_path / "cache")
    ImageStore(files, reading=reading)
    with monkeypatch.context() as patch:
        patch.setattr(shelf, "decoded", None)  # nothing is decoded
        found = ImageStore(files, reading=reading)
    assert_images(found.gather(torch.arange(N)), files)

    Image.new("RGB", (11, 7), "red").save(files[3])
    changed = ImageStore(files, reading=reading)
    assert_images(changed.gather(torch.arange(N)), files)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1  # the old one is gone
    assert (found.gather(torch.tensor([5])).data == changed.gather(torch.tensor([5])).data).all()

    less = ImageStore(files[:-1], reading=reading)
    assert_images(less.gather(torch.arange(N - 1)), files[:-1])
    small = ImageStore(files, reading=Reading(cache=tmp_path / "cache", max_side=10))
    assert small.sizes.max() == 10


def test_a_broken_cache_is_made_again(files, tmp_path):
    reading, cache = Reading(cache=tmp_path / "cache"), tmp_path / "cache"
    ImageStore(files, reading=reading)
    for pattern in ("*.pt", "*.bin"):
        for broken in (b"", b"broken"):
            (file,) = cache.glob(pattern)
            file.write_bytes(broken)
            store = ImageStore(files, reading=reading)
            assert_images(store.gather(torch.arange(N)), files)
        (file,) = cache.glob(pattern)
        file.unlink()
        assert_images(ImageStore(files, reading=reading).gather(torch.arange(N)), files)


def test_of_two_at_once_one_writes_and_the_other_waits(files, tmp_path, monkeypatch):
    """As ranks do; a lock of this kind holds between two openings of a file in one process too."""
    read, count = shelf.decoded, itertools.count()
    monkeypatch.setattr(shelf, "decoded", lambda *args: (next(count), read(*args))[1])
    reading = Reading(cache=tmp_path / "cache")
    with ThreadPoolExecutor(2) as pool:
        for store in pool.map(lambda _: ImageStore(files, reading=reading), range(2)):
            assert_images(store.gather(torch.arange(N)), files)
    assert next(count) == N


def build(files, cache, slow):
    if slow:
        write = os.pwrite
        os.pwrite = lambda *args: time.sleep(0.1) or write(*args)
    ImageStore(files, reading=Reading(cache=cache, workers=1))


def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_whole(files, tmp_path):
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=build, args=(files, cache, True))
    process.start()
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(cache.glob("*.pt"))
    assert_images(ImageStore(files, reading=Reading(cache=cache)).gather(torch.arange(N)), files)
    assert not list(cache.glob("*.tmp"))


def test_a_cache_that_cannot_be_written(files, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=f"cache {tmp_path / 'cache'}: cannot be used: File exists"):
        ImageStore(files, reading=Reading(cache=tmp_path / "cache"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="cannot be used: No space left on device"):
        ImageStore(files, reading=Reading(cache=tmp_path / "other"))
    assert [path.suffix for path in (tmp_path / "other").iterdir()] == [".lock"]
