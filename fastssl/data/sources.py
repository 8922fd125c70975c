"""A loader for each kind of data: from a path, an image size and how files are read to a split."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.data.images import Images, Split, TensorImages
from fastssl.data.shelf import Reading
from fastssl.data.store import ImageStore
from fastssl.errors import UserError

SPLIT_SEED = 0  # of the data, not of a run: test images stay test images
TEST_SHARE = 0.2
IDX_DTYPE_UINT8 = 8
CIFAR_ROW = 1 + 3 * 32 * 32
LARGE = 64  # pixels from which views are made as for photographs
CROP = 224 / 256  # of a photograph's shorter side, that networks are judged by


def digits(_: str, size: int | None, reading: Reading) -> Split:
    """scikit-learn's 1,797 handwritten digits, 8×8, 16 grey levels, scaled up to 16×16."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images * (255 / 16)).float()[:, None]  # [N, 1, 8, 8]
    labels = torch.from_numpy(data.target).long()
    train, test = held_out(labels.tolist())
    images = resized(images, size or 16)
    return Split(
        TensorImages(images[train], labels[train]),
        TensorImages(images[test], labels[test]),
        "digits",
    )


def mnist(path: str, size: int | None, reading: Reading) -> Split:
    """MNIST's four IDX files (or those of its likes), each plain or gzip."""

    def part(prefix: str) -> Images:
        images = read_idx(Path(path), f"{prefix}-images", dimensions=3)
        labels = read_idx(Path(path), f"{prefix}-labels", dimensions=1)
        if len(images) != len(labels):
            raise UserError(f"{path}: {len(images)} {prefix} images but {len(labels)} labels")
        return TensorImages(resized(images[:, None], size), labels.long())

    return Split(part("train"), part("t10k"), "digits")


def cifar10(path: str, size: int | None, reading: Reading) -> Split:
    """CIFAR-10's binary version: data_batch_1.bin to data_batch_5.bin and test_batch.bin."""
    folder = Path(path)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"

    def part(pattern: str) -> Images:
        files = sorted(folder.glob(pattern))
        if not files:
            raise UserError(f"{folder}: there is no {pattern}")
        rows = torch.cat([read_cifar(file) for file in files])
        images = rows[:, 1:].reshape(-1, 3, 32, 32)
        return TensorImages(resized(images, size), rows[:, 0].long())

    return Split(part("data_batch_*.bin"), part("test_batch.bin"), "small")


def folder(path: str, size: int | None, reading: Reading) -> Split:
    """Image files below a path. Folders inside are classes; files beside none have no labels.

    ``PATH/train`` and ``PATH/test`` (or ``val``), where both are there, are the split.
    """
    root = Path(path)
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_root and (root / "train").is_dir():
        classes = class_names(root / "train")
        train_part = find_images(root / "train", classes)
        test_part = find_images(test_root, classes)
    else:
        files, labels = find_images(root, class_names(root))
        train, test = held_out(labels) if labels else (list(range(len(files))), [])
        train_part, test_part = (
            ([files[i] for i in part], labels and [labels[i] for i in part])
            for part in (train, test)
        )
    size = size or 224

    def images(files: list[Path], labels: list[int] | None) -> Images:
        return ImageStore(files, labels, size=size, crop=_crop(size), reading=reading)

    judged = bool(test_part[0]) and train_part[1] is not None and test_part[1] is not None
    return Split(images(*train_part), images(*test_part) if judged else None, _views(size))


@dataclass(frozen=True)
class TableImage:
    """An image in a table of ``datasets``, as it is encoded there."""

    rows: Any  # of one column, undecoded
    number: int
    name: str  # of the table

    def __str__(self) -> str:
        return f"{self.name} image {self.number}"

    @property
    def state(self) -> str:
        """Of all rows."""
        return str(self.rows._fingerprint)

    def read_bytes(self) -> bytes:
        """From the table, or from the file that it names."""
        (image,) = self.rows[self.number].values()
        if image is None:
            raise OSError("there is none")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()


def hugging_face(name: str, size: int | None, reading: Reading) -> Split:
    """A data set of Hugging Face ``datasets``: a name of the hub, or a folder it can read."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"hf:{name} needs datasets: pip install datasets") from error
    local = Path(name)
    saved = any((local / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        data: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # whatever the library raises, the user named a wrong data set
        raise UserError(f"hf:{name}: {str(error).splitlines()[0]}") from error
    parts = dict(data) if isinstance(data, dict) else {"train": data}
    train = parts.get("train", next(iter(parts.values())))
    test = parts.get("test", parts.get("validation"))
    features = train.features.items()
    image = next((key for key, kind in features if isinstance(kind, datasets.Image)), None)
    label = next((key for key, kind in features if isinstance(kind, datasets.ClassLabel)), None)
    if image is None:
        raise UserError(f"hf:{name}: no column of images among {', '.join(train.features)}")
    if test is None and label is not None:
        kept, out = held_out(train[label])
        train, test = train.select(kept), train.select(out)
    size = size or 224

    def images(rows: Any, part: str) -> Images:
        column = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        files = [TableImage(column, i, f"hf:{name}, {part}") for i in range(len(rows))]
        labels = list(rows[label]) if label else None
        return ImageStore(files, labels, size=size, crop=_crop(size), reading=reading)

    judged = test is not None and label is not None
    return Split(images(train, "train"), images(test, "test") if judged else None, _views(size))


def _crop(size: int) -> float:
    return CROP if size >= LARGE else 1.0


def _views(size: int) -> str:
    return "photo" if size >= LARGE else "small"


def held_out(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices to train on and to judge by, sorted; one in five of each class is held out."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    classes = torch.as_tensor(labels)
    test: list[int] = []
    for label in classes.unique():
        members = (classes == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        test += members[order[: round(TEST_SHARE * len(members))]].tolist()
    train = sorted(set(range(len(classes))) - set(test))
    return train, sorted(test)


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 [N, C, size, size] from uint8 or float [N, C, H, W] of 0 to 255."""
    if size is not None and images.shape[-2:] != (size, size):
        smaller = size < images.shape[-1]
        images = F.interpolate(
            images.float(), size=(size, size), mode="bilinear", antialias=smaller
        )
    return images if images.dtype == torch.uint8 else images.round().to(torch.uint8)


def read_idx(folder: Path, stem: str, *, dimensions: int) -> Tensor:
    """uint8 from ``STEM-idxN-ubyte``, plain or ``.gz``."""
    names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: there is no {names[0]}, plain or .gz")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes([0, 0, IDX_DTYPE_UINT8, dimensions]):
        raise UserError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
    shape = [int(side) for side in np.frombuffer(raw, ">u4", dimensions, offset=4)]
    if len(raw) != header + int(np.prod(shape)):
        raise UserError(f"{path}: broken: {len(raw)} bytes do not hold {shape}")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())


def read_cifar(path: Path) -> Tensor:
    """uint8 [N, 1 + 3·32·32]: a label, then red, green and blue planes."""
    raw = np.fromfile(path, np.uint8)
    if len(raw) == 0 or len(raw) % CIFAR_ROW:
        raise UserError(f"{path}: broken: {len(raw)} bytes are not rows of {CIFAR_ROW}")
    return torch.from_numpy(raw.reshape(-1, CIFAR_ROW))


def class_names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir())


def find_images(root: Path, classes: list[str]) -> tuple[list[Path], list[int] | None]:
    """Image files below a folder, sorted, and the number of the class folder each lies in."""
    extensions = Image.registered_extensions()
    files = sorted(
        path for path in root.rglob("*") if path.suffix.lower() in extensions and path.is_file()
    )
    if not files:
        raise UserError(f"{root}: there are no images in it")
    tops = [path.relative_to(root).parts[0] for path in files]
    labelled = len(classes) > 1 and all(top in classes for top in tops)
    return files, [classes.index(top) for top in tops] if labelled else None
