"""Data by name: ``digits | folder:PATH | mnist:PATH | cifar10:PATH | hf:NAME_OR_DIR``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastssl.data import sources
from fastssl.data.images import Split
from fastssl.data.shelf import Reading
from fastssl.errors import UserError, choose

Loader = Callable[[str, int | None, Reading], Split]  # (path or name, image size, how files)

SOURCES: dict[str, tuple[str | None, Loader]] = {  # name: (what follows its colon, loader)
    "digits": (None, sources.digits),
    "folder": ("PATH", sources.folder),
    "mnist": ("PATH", sources.mnist),
    "cifar10": ("PATH", sources.cifar10),
    "hf": ("NAME_OR_DIR", sources.hugging_face),
}


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    reading: Reading = Reading(),  # noqa: B008, it is frozen
) -> Split:
    """The images of that name, split into those to train on and those to judge by.

    Where the data comes with a split, that one; otherwise one image in five is kept for the test,
    by a seed that never changes.

    Args:
        name: ``digits`` (scikit-learn's, 8×8), ``folder:PATH`` (image files; folders inside are
            classes) or PATH alone, ``mnist:PATH`` (IDX files, plain or gzip), ``cifar10:PATH`` (the
            binary version), ``hf:NAME_OR_DIR`` (Hugging Face ``datasets``).
        image_size: H = W; None: the data's own, 16 for digits, 224 for folder and hf.
        reading: how image files, and hf's, are read and kept.

    Raises:
        UserError: an unknown name, a missing path or package, a broken file.
    """
    kind, rest = source_of(name)
    forms = [kind + (f":{follows}" if follows else "") for kind, (follows, _) in SOURCES.items()]
    if kind not in SOURCES and Path(name).is_file():
        raise UserError(f"data {name!r} is a file; give the folder of the images")
    if kind not in SOURCES and len(Path(name).parts) > 1:
        raise UserError(f"data {name!r}: there is no such folder")
    if kind not in SOURCES:
        raise choose("data", name, forms)
    follows, load = SOURCES[kind]
    if bool(follows) != bool(rest):
        raise UserError(f"data {name!r} should read {kind}{':' + follows if follows else ''}")
    if follows == "PATH" and not Path(rest).is_dir():
        raise UserError(f"data {name!r}: there is no folder {rest}")
    return load(rest, image_size, reading)


def source_of(name: str) -> tuple[str, str]:
    """The kind of data and what follows its colon; the path of a folder is that of its images."""
    kind, _, rest = name.partition(":")
    return ("folder", name) if kind not in SOURCES and Path(name).is_dir() else (kind, rest)
