"""Files to pixels: upright, 8 bits, RGB; the size is known beforehand; what is broken says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastssl.data.decode import SIZED, UnreadableError, decode, size_of


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_an_orientation_is_followed(tmp_path, orientation, suffix):
    exif, path = Image.Exif(), tmp_path / f"image.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(noise(9, 14, 3)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(path), expected)
    assert size_of(path) == expected.shape[:2] == ((9, 14) if orientation < 5 else (14, 9))


MODES = {
    "1": noise(9, 14) > 127,
    "L": noise(9, 14),
    "LA": noise(9, 14, 2),
    "RGB": noise(9, 14, 3),
    "RGBA": noise(9, 14, 4),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(tmp_path, mode, channels):
    pixels, path = MODES[mode], tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    colours = pixels[..., :3] if mode in ("RGB", "RGBA") else None
    grey = pixels * 255 if mode == "1" else pixels if mode == "L" else pixels[..., 0]
    found = decode(path, channels)
    assert (found.shape, found.dtype) == ((9, 14, channels), np.uint8)
    if colours is None:  # the same in each channel
        assert (found == grey[:, :, None]).all()
    elif channels == 3:  # transparency is dropped
        assert np.array_equal(found, colours)
    else:
        luma = colours @ np.array([0.299, 0.587, 0.114])
        assert np.abs(found[..., 0] - luma).max() <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.fromarray(noise(9, 14) % 4, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    for options in ({}, {"transparency": 1}):
        image.save(tmp_path / "image.png", **options)
        red = noise(9, 14) % 4 == 0
        assert np.array_equal((decode(tmp_path / "image.png") == [255, 0, 0]).all(axis=2), red)


def test_cmyk_and_16_bits(tmp_path):
    Image.new("CMYK", (14, 9), (0, 255, 255, 0)).save(tmp_path / "image.jpg")
    red = decode(tmp_path / "image.jpg").astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 8
    deep = noise(9, 14, dtype=np.uint16)
    for name in ("image.png", "image.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        assert (decode(tmp_path / name) == (deep >> 8)[:, :, None]).all()


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    for name in ("image.gif", "image.png", "image.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        found = decode(tmp_path / name).astype(int)
        assert np.abs(found - [255, 0, 0]).max() <= 3
        assert size_of(tmp_path / name) == (6, 8)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "ppm", "ico", "jp2"])
@pytest.mark.parametrize("max_side", [None, 10, 33, 1000])
def test_the_size_is_known_beforehand(tmp_path, suffix, max_side):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(64, 48, 3)).save(path)
    height, width = size_of(path, max_side=max_side)
    assert decode(path, max_side=max_side).shape == (height, width, 3)
    if max_side in (10, 33):
        assert (height, width) == (max_side, round(max_side * 3 / 4))


def test_a_smaller_image_is_a_mean_of_the_larger(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 640).astype(np.uint8)[None], 320, axis=0)
    for name in ("image.jpg", "image.png"):
        Image.fromarray(ramp).convert("RGB").save(tmp_path / name)
        small = decode(tmp_path / name, max_side=64).astype(float)
        means = ramp[0].reshape(64, 10).mean(axis=1)
        assert np.abs(small - means[None, :, None])[:, 1:-1].max() <= 3


def broken_files():
    for name, kind in (("jpg", "JPEG"), ("png", "PNG"), ("gif", "GIF"), ("webp", "WEBP")):
        stream = io.BytesIO()
        Image.fromarray(noise(50, 60, 3)).save(stream, kind)
        whole = stream.getvalue()
        for share in (0, 0.001, 0.5, 0.95):
            yield pytest.param(name, whole[: int(share * len(whole))], id=f"{name} {share}")
    yield pytest.param("jpg", b"nothing like an image" * 100, id="text")
    yield pytest.param("jpg", b"\xff\xd8\xff\xe0" + bytes(500), id="a JPEG's first bytes")


@pytest.mark.parametrize(("suffix", "content"), list(broken_files()))
def test_what_is_broken_says_so(tmp_path, suffix, content):
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=r"\w"):
        decode(path)


def test_files_that_are_not_there_and_bombs(tmp_path, monkeypatch):
    for look in (decode, size_of):
        with pytest.raises(UnreadableError, match="No such file"):
            look(tmp_path / "none.jpg")
    Image.new("RGB", (40, 30)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for look in (decode, size_of):
        with pytest.raises(UnreadableError, match="decompression bomb"):
            look(tmp_path / "bomb.png")


def test_headers_alone_are_read_of_common_formats(tmp_path):
    assert {"JPEG", "PNG"} <= SIZED
    for name in ("image.jpg", "image.png"):
        Image.fromarray(noise(64, 48, 3)).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert size_of(tmp_path / name) == (64, 48)
