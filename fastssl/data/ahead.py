"""Work done ahead of its use, in threads, its order kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


def ahead(
    load: Callable[[Key], Item], keys: Iterable[Key], *, depth: int = 2, threads: int = 1
) -> Generator[Item, None, None]:
    """``map(load, keys)``, where the next items load in threads while this one is used.

    Items come in the order of their keys, whatever the threads' pace. What ``load`` raises is
    raised in the place of its item. Nothing begins before the first item is asked for; when the
    iterator is closed or let go of, what has not begun is given up and what has is waited for.

    Args:
        load: from a key to an item; with several threads, called from them at once.
        keys: any iterable, endless ones too.
        depth: items that are loading or ready beyond the one in use.
        threads: how many load at once, at most ``depth`` of them with work.

    Raises:
        ValueError: depth or threads below 1.
    """
    if depth < 1 or threads < 1:
        raise ValueError(f"depth and threads must be at least 1, not {depth} and {threads}")
    return _ahead(load, iter(keys), depth, threads)


def _ahead(
    load: Callable[[Key], Item], keys: Iterator[Key], depth: int, threads: int
) -> Generator[Item, None, None]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="load")
    try:
        upcoming = deque(pool.submit(load, key) for key in islice(keys, depth))
        while upcoming:
            current = upcoming.popleft()
            item = current.result()
            del current  # or it would keep the item while the next ones are waited for
            upcoming.extend(pool.submit(load, key) for key in islice(keys, 1))
            yield item
            del item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
