"""Work ahead of its use: in order, at most so far, errors in their places, gone when closed."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from fastssl.data import ahead


@pytest.mark.parametrize("threads", [1, 4])
def test_items_come_in_the_order_of_their_keys(threads):
    def slowly(key):
        time.sleep(0.002 * (key % 3))  # later ones are often ready earlier
        return key * key

    items = ahead(slowly, range(30), depth=8, threads=threads)
    assert list(items) == [key * key for key in range(30)]
    assert list(ahead(slowly, [])) == []


def test_so_many_and_no_more_are_ready_beyond_the_one_in_use():
    begun = []
    items = ahead(begun.append, itertools.count(), depth=3)
    assert begun == []
    for used in range(4):
        next(items)
        wait_until(lambda used=used: len(begun) == used + 4)
        time.sleep(0.01)
        assert begun == list(range(used + 4))
    items.close()


def test_an_error_comes_in_the_place_of_its_item():
    def load(key):
        if key == 3:
            raise KeyError("three")
        return key

    items = ahead(load, range(10), depth=5, threads=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three"):
        next(items)
    assert list(items) == []


@pytest.mark.parametrize("how", ["close", "forget"])
def test_no_thread_is_left_when_it_ends_early(how):
    before, begun = threading.active_count(), []

    def load(key):
        begun.append(key)
        time.sleep(0.15)
        return key

    items = ahead(load, itertools.count(), depth=6, threads=2)
    assert next(items) == 0
    assert threading.active_count() > before
    if how == "close":
        items.close()
    else:
        del items
    assert threading.active_count() == before
    count = len(begun)
    assert count < 6  # those that had not begun are given up
    time.sleep(0.05)
    assert len(begun) == count


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"threads": 0}])
def test_numbers_below_one(wrong):
    with pytest.raises(ValueError, match="depth and threads must be at least 1"):
        ahead(print, range(3), **wrong)


def wait_until(true):
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)
