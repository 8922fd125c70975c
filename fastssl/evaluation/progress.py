"""Progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable


class Bar:
    """A progress bar as a context manager that yields ``advance(n)``; silent where not wanted."""

    def __init__(self, title: str, total: int, shown: bool) -> None:
        from tqdm import tqdm

        interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file wants few lines
        self.bar = tqdm(
            total=total, desc=title, disable=not shown, leave=False, mininterval=interval
        )

    def __enter__(self) -> Callable[[int], object]:
        return self.bar.update

    def __exit__(self, *_: object) -> None:
        self.bar.close()
