"""What is kept of image files: their pixels or their bytes, in memory or mapped from a disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from torch import Tensor

from fastssl.data.ahead import ahead
from fastssl.data.decode import Stored, UnreadableError, decode, size_of
from fastssl.errors import UserError

Keep = Literal["auto", "decoded", "encoded", "files"]
File = Path | Stored
Put = Callable[[int, np.ndarray], None]  # (offset, uint8 bytes)
VERSION = 1  # of what is written


@dataclass(frozen=True)
class Reading:
    """How image files are read and kept.

    Args:
        keep: "decoded", their pixels; "encoded", their bytes, to be decoded for each batch;
            "files", nothing: they are read and decoded for each batch; "auto": decoded with a
            cache, or where that fits into half of the memory that is free, shared by the processes
            that torchrun started; else files.
        cache: a directory where what is kept is written once and mapped into memory, so that it may
            be larger than that, is shared by processes and found again by the next run, while the
            files have the same paths, sizes and times of change; None: it is kept in memory. Every
            list of files has an entry of its own, which stays until somebody deletes it.
        on_corrupt: what to do about a file that cannot be decoded: "raise" when it is met; "skip":
            leave it out, for which, whatever is kept, every file is decoded once at the beginning
            (with a cache, once for all runs). One that breaks later is raised all the same.
        max_side: larger images are made smaller, to this many pixels along their longer side; None:
            every image as it is.
        workers: threads.
        progress: show on stderr how far the first reading is.
    """

    keep: Keep = "auto"
    cache: Path | None = None
    on_corrupt: Literal["raise", "skip"] = "raise"
    max_side: int | None = None
    workers: int = 4
    progress: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("keep", ("auto", "decoded", "encoded", "files")),
            ("on_corrupt", ("raise", "skip")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be {' | '.join(allowed)}, not {getattr(self, name)!r}"
                )
        for name in ("max_side", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True)
class Shelf:
    """Where the images are. N of the files can be read."""

    keep: Literal["decoded", "encoded", "files"]
    data: Tensor | None  # uint8 [bytes]; None: nothing is kept
    mapped: bool  # from a disk
    rows: Tensor  # int64 [N]: which of the files they are, ascending
    offsets: Tensor  # int64 [N]: where an image's bytes begin
    counts: Tensor  # int64 [N]: how many there are
    sizes: Tensor  # int64 [N, 2]: heights and widths in pixels
    unreadable: dict[int, str]  # the other files, and why


def fill(files: Sequence[File], channels: int, reading: Reading) -> Shelf:
    """Read files, or find what an earlier run wrote of them.

    Raises:
        UserError: a file cannot be read, and that is not to be skipped; the cache cannot be
            written; what is to be kept is larger than the memory or the disk.
    """
    if reading.cache is None:
        return _read(files, channels, reading, None)
    try:
        with _Entry(reading.cache, files, channels, reading).locked() as entry:
            shelf = entry.find()
            if shelf is None:
                return _read(files, channels, reading, entry)
    except OSError as error:
        raise UserError(f"cache {reading.cache}: cannot be used: {error.strerror}") from error
    if reading.on_corrupt == "raise":
        for i, reason in shelf.unreadable.items():
            raise unreadable(files[i], reason)
    return shelf


def read_file(file: File) -> bytes:
    """A file's bytes; UnreadableError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error


def decoded(
    raw: bytes | memoryview, size: tuple[int, int], channels: int, max_side: int | None
) -> np.ndarray:
    """Pixels, uint8 [H·W·C]; UnreadableError where there are none, or not of that size."""
    image = decode(BytesIO(raw), channels, max_side)
    if image.shape[:2] != size:
        height, width = size
        raise UnreadableError(f"it is {image.shape[:2]}, not {height, width} as it should be")
    return image.reshape(-1)


def unreadable(file: File, reason: str) -> UserError:
    return UserError(f"{file}: not a readable image: {reason}")


def free_memory() -> int:
    """Bytes that this process may still use: of the machine and of its control group."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, KeyError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(limit - used + int(kinds["inactive_file"]))  # cached pages give way
    return max(0, min(free))


def in_words(count: int) -> str:
    """A number of bytes, in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _read(files: Sequence[File], channels: int, reading: Reading, entry: _Entry | None) -> Shelf:
    broken: dict[int, str] = {}
    skip = reading.on_corrupt == "skip"

    def each(load: Callable[[int], Any], title: str) -> Iterator[tuple[int, Any]]:
        """What is loaded of every file that is not known to be broken."""
        rows, threads = [i for i in range(len(files)) if i not in broken], reading.workers
        found = ahead(_or_reason(load), rows, depth=8 * threads, threads=threads)
        for i, item in zip(rows, _shown(found, len(rows), title, reading.progress), strict=True):
            if not isinstance(item, _Reason):
                yield i, item
            elif skip:
                broken[i] = item
            else:
                raise unreadable(files[i], item)

    def measure(i: int) -> tuple[int, int]:
        return size_of(files[i], channels, reading.max_side)

    sizes, counts = np.zeros((len(files), 2), np.int64), np.zeros(len(files), np.int64)
    for i, size in each(measure, "headers"):
        sizes[i] = size
    pixels = sizes.prod(axis=1) * channels
    keep = _chosen(reading, int(pixels.sum()), entry is not None)
    if keep == "decoded":
        counts = pixels
    elif keep == "encoded":
        counts[:] = [0 if i in broken else _length(file) for i, file in enumerate(files)]
    ends = counts.cumsum()
    total = int(ends[-1])

    with entry.data_file(total) if entry else _memory(total, keep) as (data, put):

        def store(i: int) -> None:
            raw = read_file(files[i])
            content = np.frombuffer(raw, np.uint8)
            if keep == "decoded" or skip:
                image = decoded(raw, tuple(sizes[i]), channels, reading.max_side)
                content = image if keep == "decoded" else content
            if keep != "files":
                if len(content) != counts[i]:
                    raise UnreadableError("it changed while it was read")
                put(int(ends[i] - counts[i]), content)

        if keep != "files" or skip:
            for _ in each(store, "images"):
                pass
    rows = np.array([i for i in range(len(files)) if i not in broken], np.int64)
    shelf = Shelf(
        keep,
        data,
        mapped=False,
        rows=torch.from_numpy(rows),
        offsets=torch.from_numpy((ends - counts)[rows]),
        counts=torch.from_numpy(counts[rows]),
        sizes=torch.from_numpy(sizes[rows]),
        unreadable={i: str(reason) for i, reason in sorted(broken.items())},
    )
    return entry.write(shelf, total) if entry else shelf


class _Reason(str):
    """Why an image cannot be read."""


def _or_reason(load: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same, but for an image that cannot be read it gives the reason."""

    def attempt(i: int) -> Any:
        try:
            return load(i)
        except UnreadableError as error:
            return _Reason(error)

    return attempt


def _chosen(reading: Reading, decoded: int, cached: bool) -> Literal["decoded", "encoded", "files"]:
    if reading.keep != "auto":
        return reading.keep
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # each keeps its own
    return "decoded" if cached or decoded <= free_memory() // (2 * ranks) else "files"


@contextmanager
def _memory(total: int, keep: str) -> Iterator[tuple[Tensor | None, Put]]:
    """So many bytes of memory, and how to write there."""
    free = free_memory()
    if total > free:
        raise UserError(
            f"{keep}, these images take {in_words(total)}, and {in_words(free)} of memory are "
            "free: give a cache directory, a max_side, or keep files"
        )
    data = torch.empty(total, dtype=torch.uint8)
    memory = data.numpy()

    def put(offset: int, content: np.ndarray) -> None:
        memory[offset : offset + len(content)] = content

    yield (data if total else None), put


class _Entry:
    """What a cache holds of one list of files: an index, and data beside it.

    Both are written under other names and renamed when they are whole, the index last, which names
    the data it goes with: a kill at any moment leaves the old pair, the new one or none.
    """

    def __init__(
        self, folder: Path, files: Sequence[File], channels: int, reading: Reading
    ) -> None:
        keep = "decoded" if reading.keep == "auto" else reading.keep
        checked = keep == "decoded" or reading.on_corrupt == "skip"
        options = (VERSION, PIL.__version__, channels, keep, checked, reading.max_side)
        paths = [os.path.abspath(f) if isinstance(f, Path) else str(f) for f in files]
        states = [_state(file) for file in files]
        self.key = _digest(options, paths)
        self.fingerprint = _digest(states)
        self.folder = folder
        self.index = folder / f"{self.key}.pt"
        self.data = folder / f"{self.key}-{self.fingerprint}.bin"
        self.temporary = folder / f"{self.key}.tmp"

    @contextmanager
    def locked(self) -> Iterator[_Entry]:
        """While another process writes this entry, wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # which goes with the process, however that ends
            yield self

    def find(self) -> Shelf | None:
        """What was written, where it is whole and the files are as they were."""
        try:
            found = torch.load(self.index, weights_only=True)
            if found.pop("fingerprint") != self.fingerprint:
                return None
            total = found.pop("total")
            data = self._map(total)
            return Shelf(**found, data=data, mapped=True)
        except Exception:  # there is none, or it is broken in whatever way: it is made again
            return None

    @contextmanager
    def data_file(self, total: int) -> Iterator[tuple[None, Put]]:
        """A file of so many bytes, and how to write there."""
        free = os.statvfs(self.folder)
        if total > free.f_bavail * free.f_frsize:
            raise UserError(
                f"cache {self.folder}: these images take {in_words(total)}, "
                f"{in_words(free.f_bavail * free.f_frsize)} are free there"
            )
        try:
            with self.temporary.open("wb") as file:
                os.truncate(file.fileno(), total)

                def put(offset: int, content: np.ndarray) -> None:
                    rest = np.ascontiguousarray(content).data
                    while (
                        rest
                    ):  # a write may stop early; a full disk raises, where a map would kill
                        written = os.pwrite(file.fileno(), rest, offset)
                        rest, offset = rest[written:], offset + written

                yield None, put
                os.fsync(file.fileno())
            os.replace(self.temporary, self.data)
        except BaseException:
            self.temporary.unlink(missing_ok=True)
            raise

    def write(self, shelf: Shelf, total: int) -> Shelf:
        """Write the index, and give the shelf with its data mapped."""
        content = {k: v for k, v in asdict(shelf).items() if k not in ("data", "mapped")}
        with self.temporary.open("wb") as file:
            torch.save({**content, "fingerprint": self.fingerprint, "total": total}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.temporary, self.index)
        for old in self.folder.glob(f"{self.key}-*.bin"):
            if old != self.data:
                old.unlink()  # who has it mapped keeps it
        return Shelf(**content, data=self._map(total), mapped=True)

    def _map(self, total: int) -> Tensor | None:
        if self.data.stat().st_size != total:
            raise ValueError(f"{self.data} has not {total} bytes")
        if total == 0:
            return None
        return torch.from_file(str(self.data), shared=False, size=total, dtype=torch.uint8)


def _length(file: File) -> int:
    return file.stat().st_size if isinstance(file, Path) else len(file.read_bytes())


def _state(file: File) -> tuple[int, int] | str | None:
    if not isinstance(file, Path):
        return file.state
    try:
        found = file.stat()
    except OSError:  # decoding will say
        return None
    return found.st_size, found.st_mtime_ns


def _digest(*parts: Iterable[Any]) -> str:
    text = "\n".join(repr(item) for part in parts for item in part)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]


def _shown(items: Iterable[Any], total: int, title: str, shown: bool) -> Iterator[Any]:
    if not shown:
        return iter(items)
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10  # seconds; a log file wants few lines
    return iter(
        tqdm(items, title, total, leave=False, mininterval=interval, unit=" images", delay=1)
    )
