"""Every kind of data, from small files written here; every broken file named."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastssl.cli import main
from fastssl.data import Reading, load_data
from fastssl.errors import UserError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def everything(images):
    return images[torch.arange(len(images))]


# digits


def test_digits_are_split_for_good():
    data = load_data("digits")
    assert data.train.shape == (1, 16, 16)
    assert len(data.train) + len(data.test) == 1797
    assert len(data.test) == pytest.approx(0.2 * 1797, abs=5)
    assert data.train.labels.bincount().min() > 130
    train = {image.numpy().tobytes() for image in everything(data.train)}
    test = {image.numpy().tobytes() for image in everything(data.test)}
    assert not train & test
    assert (data.test.labels[:8].tolist(), int(data.test.labels.sum())) == RECORDED_TEST_LABELS
    assert everything(data.train).dtype == torch.uint8
    assert everything(data.train).max() == 255


RECORDED_TEST_LABELS = ([1, 2, 6, 0, 3, 6, 2, 5], 1613)


def test_digits_of_another_size():
    small = load_data("digits", image_size=8).train
    assert small.shape == (1, 8, 8)
    assert len(everything(small).unique()) == 17  # the levels as they are


# MNIST


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(params=["-idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte"])
def mnist(tmp_path, request):
    for prefix, n in (("train", 30), ("t10k", 10)):
        write_idx(tmp_path / f"{prefix}-images{request.param.format(3)}", noise(n, 28, 28))
        write_idx(tmp_path / f"{prefix}-labels{request.param.format(1)}", noise(n) % 10)
    return tmp_path


def test_mnist(mnist):
    data = load_data(f"mnist:{mnist}")
    assert (len(data.train), len(data.test), data.train.shape) == (30, 10, (1, 28, 28))
    assert np.array_equal(everything(data.train)[:, 0].numpy(), noise(30, 28, 28))
    assert np.array_equal(data.test.labels.numpy(), noise(10) % 10)
    assert load_data(f"mnist:{mnist}", image_size=14).train.shape == (1, 14, 14)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08\x01" + b"\x00" * 20, "not an IDX file of bytes in 3 dimensions"),
        (b"\x00\x00\x0d\x03" + b"\x00" * 20, "not an IDX file"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 3, 4) + b"\x00" * 23, "broken: 39 bytes"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path, content, says):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte: {says}"):
        load_data(f"mnist:{tmp_path}")


def test_broken_gzip_missing_files_and_unequal_lengths(tmp_path):
    with pytest.raises(UserError, match=r"there is no train-images-idx3-ubyte, plain or \.gz"):
        load_data(f"mnist:{tmp_path}")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, noise(30, 28, 28))
    whole = path.read_bytes()
    for broken in (whole[:100], b"no gzip at all", whole[:50] + b"xxxx" + whole[54:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
            load_data(f"mnist:{tmp_path}")
    path.write_bytes(whole)
    write_idx(tmp_path / "train-labels-idx1-ubyte", noise(29))
    with pytest.raises(UserError, match="30 train images but 29 labels"):
        load_data(f"mnist:{tmp_path}")


# CIFAR-10


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, inside):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    rows = noise(12, 3073)
    rows[:, 0] %= 10
    rows[:8].tofile(folder / "data_batch_1.bin")
    rows[8:10].tofile(folder / "data_batch_2.bin")
    rows[10:].tofile(folder / "test_batch.bin")
    data = load_data(f"cifar10:{tmp_path}")
    assert (len(data.train), len(data.test), data.train.shape) == (10, 2, (3, 32, 32))
    assert data.train.labels.tolist() == rows[:10, 0].tolist()
    red = everything(data.train)[9, 0]
    assert np.array_equal(red.numpy().ravel(), rows[9, 1:1025])


def test_broken_cifar10_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no data_batch_\*\.bin"):
        load_data(f"cifar10:{tmp_path}")
    noise(3072).tofile(tmp_path / "data_batch_1.bin")
    with pytest.raises(UserError, match=r"data_batch_1\.bin: broken: 3072 bytes"):
        load_data(f"cifar10:{tmp_path}")


# folders


def write_images(folder, n, colour=(255, 0, 0), size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", size, colour).save(folder / f"{i:02}.png")


def test_a_folder_of_classes(tmp_path):
    write_images(tmp_path / "cat", 10, (255, 0, 0))
    write_images(tmp_path / "dog", 5, (0, 0, 255))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = load_data(f"folder:{tmp_path}", image_size=24)
    assert (len(data.train), len(data.test)) == (12, 3)
    assert data.train.shape == (3, 24, 24)
    assert data.train.labels.bincount().tolist() == [8, 4]
    for label, pixels in zip(data.train.labels, everything(data.train), strict=True):
        assert (pixels[0 if label == 0 else 2] == 255).all()
    assert data.recipe == "small"
    assert load_data(f"folder:{tmp_path}").train.shape == (3, 224, 224)


def test_a_folder_with_its_own_split(tmp_path):
    for part, n in (("train", 4), ("val", 2)):
        for label in ("a", "b"):
            write_images(tmp_path / part / label, n)
    data = load_data(f"folder:{tmp_path}", image_size=16)
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_a_folder_without_labels(tmp_path):
    write_images(tmp_path, 6)
    data = load_data(f"folder:{tmp_path}", image_size=16)
    assert len(data.train) == 6
    assert data.test is None
    assert data.train.labels is None


def test_modes_sizes_and_the_centre(tmp_path):
    image = np.zeros((20, 60), np.uint8)
    image[:, 20:40] = 200
    Image.fromarray(image).save(tmp_path / "0.png")
    Image.fromarray(image).convert("RGBA").save(tmp_path / "1.png")
    Image.new("P", (8, 9)).save(tmp_path / "2.gif")
    Image.new("CMYK", (100, 9)).save(tmp_path / "3.jpg")
    images = everything(load_data(f"folder:{tmp_path}", image_size=20).train)
    assert images.shape == (4, 3, 20, 20)
    assert (images[:2] == 200).all()


def test_a_corrupt_image_is_named(tmp_path, capsys):
    write_images(tmp_path, 5)
    whole = (tmp_path / "03.png").read_bytes()
    for broken in (whole[: len(whole) // 2], b"nothing like an image", b""):
        (tmp_path / "03.png").write_bytes(broken)
        with pytest.raises(UserError, match=r"03\.png: not a readable image"):
            everything(load_data(f"folder:{tmp_path}", image_size=16).train)
        run = tmp_path / "run"
        options = f"train --data folder:{tmp_path} --image-size 16 --batch-size 5 --run-dir {run}"
        assert main(options.split()) == 2
        error = capsys.readouterr().err
        assert "03.png: not a readable image" in error
        assert "Traceback" not in error
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_sixteen_bits_keep_their_high_ones(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((9, 9), 0xABCD, np.uint16)).save(tmp_path / f"{i}.png")
    images = everything(load_data(f"folder:{tmp_path}", image_size=9).train)
    assert (images == 0xAB).all()


def test_a_large_photograph_is_scaled_well(tmp_path):
    ramp = np.linspace(0, 255, 1200).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (800, 1200, 3))
    for suffix in ("jpg", "png"):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"0.{suffix}")
    jpeg, png = everything(load_data(f"folder:{tmp_path}", image_size=64).train).int()
    assert (jpeg - png).abs().max() <= 3


def test_a_bomb_is_no_image(tmp_path, monkeypatch):
    write_images(tmp_path, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"0[01]\.png: not a readable image"):
        everything(load_data(f"folder:{tmp_path}", image_size=16).train)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="there are no images in it"):
        load_data(f"folder:{tmp_path}")


# Hugging Face


def test_hugging_face_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="hf:any needs datasets: pip install datasets"):
        load_data("hf:any")


needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="no datasets"
)


def rows_of(pictures):
    """A table of images, of two classes by turns, and of what nobody asks for."""
    import datasets

    kinds = datasets.ClassLabel(names=["a", "b"])
    features = {"text": datasets.Value("string"), "picture": datasets.Image(), "kind": kinds}
    rows = {"text": ["…"] * len(pictures), "picture": pictures}
    rows["kind"] = [i % 2 for i in range(len(pictures))]
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@needs_datasets
@pytest.mark.parametrize("split", [False, True])
def test_hugging_face(tmp_path, split):
    import datasets

    pictures = [Image.fromarray(noise(10 + i, 12, 3)) for i in range(20)]
    parts = {"train": rows_of(pictures), "test": rows_of(pictures[:4])}
    whole = datasets.DatasetDict(parts) if split else parts["train"]
    whole.save_to_disk(str(tmp_path / "set"))
    data = load_data(f"hf:{tmp_path / 'set'}", image_size=16)
    assert (len(data.train), len(data.test)) == ((20, 4) if split else (16, 4))
    assert everything(data.train).shape == (len(data.train), 3, 16, 16)
    assert set(data.train.labels.tolist()) == {0, 1}
    if split:  # in their own sizes
        batch = data.train.gather(torch.tensor([7, 0]))
        assert batch.sizes.tolist() == [[17, 12], [10, 12]]
        begin = int(batch.offsets[0])
        pixels = batch.data[begin : begin + 17 * 12 * 3].numpy()
        assert np.array_equal(pixels, np.asarray(pictures[7]).ravel())


@needs_datasets
def test_hugging_face_of_broken_images(tmp_path):
    import io

    pictures = []
    for i in range(10):
        file = io.BytesIO()
        Image.fromarray(noise(10, 12 + i, 3)).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    pictures[4]["bytes"], pictures[7] = pictures[4]["bytes"][:200], None
    rows_of(pictures).save_to_disk(str(tmp_path / "set"))
    name = f"hf:{tmp_path / 'set'}"
    with pytest.raises(UserError, match=r"set, train image \d: not a readable image"):
        load_data(name)
    reading = Reading(on_corrupt="skip", cache=tmp_path / "cache")
    for _ in range(2):
        data = load_data(name, reading=reading)
        assert len(data.train) + len(data.test) == 8
        reasons = {file.reason.split(" (")[0] for file in data.unreadable}
        assert reasons == {"there is none", "image file is truncated"}
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


@needs_datasets
def test_hugging_face_of_images_in_folders(tmp_path):
    for part, n in (("train", 4), ("test", 2)):
        for label in ("a", "b"):
            write_images(tmp_path / part / label, n)
    data = load_data(f"hf:{tmp_path}", image_size=16)
    assert (len(data.train), len(data.test)) == (8, 4)
    assert everything(data.train).shape == (8, 3, 16, 16)


@pytest.mark.parametrize(
    ("size", "given", "share"),
    [(None, None, 0.875), (16, None, 1), (64, None, 0.875), (16, 0.5, 0.5)],
)
def test_photographs_are_judged_by_their_middle(tmp_path, size, given, share):
    for label in ("a", "b"):
        write_images(tmp_path / label, 5)
    data = load_data(f"folder:{tmp_path}", image_size=size).framed(given)
    assert (data.train.crop, data.test.crop) == (share, share)


@needs_datasets
def test_hugging_face_of_nothing(tmp_path):
    with pytest.raises(UserError, match="hf:"):
        load_data(f"hf:{tmp_path}")
