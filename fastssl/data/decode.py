"""Image files to pixels, by Pillow: upright, 8 bits a channel, of any size and mode."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image
from PIL.ExifTags import Base

# Formats whose header says what size the pixels have; of others only decoding shows.
SIZED = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "PPM"}
UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Stored(Protocol):
    """An image that lies in no file of its own; its ``str`` is what a user calls it."""

    @property
    def state(self) -> str:
        """Another where the bytes are others."""
        ...

    def read_bytes(self) -> bytes:
        """As it is encoded; OSError where it cannot be read."""
        ...


class UnreadableError(Exception):
    """The bytes are no whole image that Pillow decodes; the message says why."""


def decode(
    source: Path | IO[bytes] | Image.Image, channels: int = 3, max_side: int | None = None
) -> np.ndarray:
    """The pixels of an image, the first one where there are several.

    Turned as its EXIF orientation says. Of 16 bits the high ones are kept, floats are cut off at
    0 and 255, transparency is dropped.

    Args:
        source: a file, or an image that is open.
        channels: 3, or 1 for grey.
        max_side: what is longer than this is made smaller, by area-weighted bilinear filtering (a
            JPEG decodes at ½, ¼ or ⅛ of its size where that is enough); None: nothing is.

    Returns:
        uint8 [H, W, channels].

    Raises:
        UnreadableError: it is broken, cut short, of no known format, or so large that Pillow takes
            it for a decompression bomb (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        if image.format not in SIZED:  # only now its size is right
            image.load()
        size, upright = _fitted(image.size, max_side), UPRIGHT.get(_orientation(image))
        if max_side is not None:
            image.draft(None, size)
        image = as_mode(image, channels)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        if upright is not None:
            image = image.transpose(upright)
        return np.asarray(image).reshape(image.height, image.width, channels)
    except MemoryError:
        raise
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise UnreadableError(_reason(error)) from error


def size_of(
    source: Path | Stored, channels: int = 3, max_side: int | None = None
) -> tuple[int, int]:
    """The height and width that :func:`decode` will give, from the file's header where that tells.

    Raises:
        UnreadableError: as of :func:`decode`; a header may be whole where the rest is not.
    """
    try:
        file = source if isinstance(source, Path) else BytesIO(source.read_bytes())
        with Image.open(file) as image:
            if image.format not in SIZED:
                height, width = decode(image, channels, max_side).shape[:2]
                return height, width
            width, height = _fitted(image.size, max_side)
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except (MemoryError, UnreadableError):
        raise
    except Exception as error:
        raise UnreadableError(_reason(error)) from error


def as_mode(image: Image.Image, channels: int) -> Image.Image:
    """An image in 8 bits, grey or RGB."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        pixels = np.asarray(image).clip(0, 0xFFFF) >> 8
        image = Image.fromarray(pixels.astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def _fitted(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    scale = 1.0 if max_side is None else min(1.0, max_side / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8, by what stands before the pixels; 1 where Pillow itself turns the image."""
    if image.format == "TIFF":
        return 1
    # A PNG's own getexif decodes the whole file, in search of what may stand behind the pixels.
    return int(Image.Image.getexif(image).get(Base.Orientation, 1))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # such as a file that may not be read
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):  # whose message repeats the path
        return "no image of a known format"
    return " ".join(str(error).split()) or type(error).__name__
