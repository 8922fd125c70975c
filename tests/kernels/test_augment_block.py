"""The body of augment's CUDA kernel, run on a processor: the reference's views, in any order of a
block's threads, in any amount of memory."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl.ops import Packed, augment
from fastssl.ops.augment import DTYPES
from fastssl.reference.augment_parameters import Chances, Column, _exp, augment_parameters
from tests.ops.test_augment import EVERYTHING, QUANTIZED, pictures, plain

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++") or shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
FORWARD, REVERSE, SHUFFLED = range(3)
H200, A100, SMALL = 227 << 10, 163 << 10, 99 << 10  # bytes of shared memory a block may have


@functools.cache
def emulator() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp())
    source, library = Path(__file__).parent / "augment_emulator.cpp", folder / "emulator.so"
    flags = ["-O2", "-std=c++20", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]
    command = [COMPILER, *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    shutil.rmtree(folder)
    loaded.make_views.restype = loaded.fewest_floats.restype = ctypes.c_int64
    return loaded


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def emulated(
    images: Packed, p, size, *, taps=1, mean=(0.0,), std=(1.0,), quantized=False,
    dtype=torch.float32, channels_last=False, planar=False, threads=37, order=FORWARD, floats=None,
    on_chip=0,
):  # fmt: skip
    """Views, and the threads of a block on a chip, or 0 where it would work in global memory."""
    channels, long = images.channels, ctypes.c_int64
    shape = (len(p), *size, channels) if channels_last else (len(p), channels, *size)
    out = torch.full(shape, torch.nan, dtype=dtype)
    gain = torch.tensor([1 / (255 * s) for s in std]).expand(channels).contiguous()
    bias = (
        torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).expand(channels).contiguous()
    )
    if floats is None:
        floats = 0 if on_chip else 40_000
    used = emulator().make_views(
        pointer(images.data), long(images.data.numel()), pointer(images.offsets),
        pointer(images.sizes), long(len(images)), long(channels), planar, pointer(p), long(len(p)),
        long(size[0]), long(size[1]), long(taps), pointer(gain), pointer(bias), quantized,
        DTYPES.index(dtype), channels_last, pointer(out), threads, order, long(floats),
        long(on_chip),
    )  # fmt: skip
    assert used >= 0, "a thread wrote beyond its memory"
    return (out.permute(0, 3, 1, 2) if channels_last else out), used


def fewest(size, channels, taps, threads=37):
    return emulator().fewest_floats(*size, channels, taps, threads)


def true(images, p, size, **options):
    with fastssl.use_backend("reference"):
        return augment(images, p, size, **options)


def agree(mine, right, quantized, std=1.0):
    """As tests/ops/test_augment.py holds the CPU's kernel."""
    away = (mine - right).abs() * std
    if not quantized:
        assert away.max() <= 1e-5
    else:
        assert away.max() <= 1.1 / 255
        assert (away > 0.5 / 255).float().mean() <= 1e-4


@QUANTIZED
@pytest.mark.parametrize("colours", [3, 1])
@pytest.mark.parametrize("size", [(24, 24), (19, 19), (1, 1)], ids=str)
def test_is_the_reference(size, colours, quantized):
    images = Packed.of(pictures(60, colours))
    p = augment_parameters(images.sizes, torch.arange(60), 7, 0, size, EVERYTHING)
    options = dict(taps=min(9, 2 * size[0] - 1), std=(0.25,), mean=(0.4,), quantized=quantized)
    mine, _ = emulated(images, p, size, **options)
    agree(mine, true(images, p, size, **options), quantized, 0.25)


@QUANTIZED
def test_any_order_and_number_of_threads_and_any_memory(quantized):
    """The same bits in every order of threads, so no barrier lacks; nearly the same in every memory
    and by any number of them, whose sums of grey are in another order."""
    size, images = (21, 21), Packed.of(pictures(12, largest=150))
    p = augment_parameters(images.sizes, torch.arange(12), 2, 0, size, EVERYTHING)
    p[::2, Column.SIGMA], options = 1.5, dict(taps=9, quantized=quantized)
    right = true(images, p, size, **options)
    least = fewest(size, 3, 9)
    for floats in (least, least + 300, least + 1500, 5 * least):
        first, _ = emulated(images, p, size, floats=floats, **options)
        for order in (REVERSE, SHUFFLED):
            other, _ = emulated(images, p, size, floats=floats, order=order, **options)
            assert torch.equal(other, first)
        agree(first, right, quantized)
    for threads in (1, 64, 1024):
        floats = fewest(size, 3, 9, threads)
        mine, _ = emulated(images, p, size, threads=threads, floats=floats, **options)
        agree(mine, right, quantized)


@QUANTIZED
@pytest.mark.parametrize(
    ("source", "size"),
    [((1, 1), (5, 3)), ((3, 700), (8, 8)), ((90, 2), (64, 33)), ((401, 300), (17, 224)),
     ((1200, 900), (5, 6)), ((7, 5), (300, 3))],
    ids=str,
)  # fmt: skip
def test_tiny_and_huge(source, size, quantized):
    """With tables of weights and without, rows all at once and by groups."""
    images = Packed.of([torch.randint(0, 256, (*source, 3), dtype=torch.uint8)])
    p = plain([torch.empty(*source, 3)], size, ORDER=7, CONTRAST=1.4, BRIGHTNESS=0.8, SIGMA=1.0)
    options = dict(taps=min(5, 2 * min(size) - 1), quantized=quantized)
    right = true(images, p, size, **options)
    for floats in (fewest(size, 3, options["taps"]), 60_000):
        mine, _ = emulated(images, p, size, floats=floats, **options)
        agree(mine, right, quantized)


@pytest.mark.parametrize("taps", [3, 5, 7, 23, 47])
def test_blur(taps):
    size, images = (24, 29), Packed.of(pictures(4))
    for sigma in (1e-30, 0.3, 2.0, 1e6):
        p = plain(pictures(4), size, SIGMA=sigma)
        for floats in (fewest(size, 3, taps), 60_000):
            mine, _ = emulated(images, p, size, taps=taps, floats=floats)
            agree(mine, true(images, p, size, taps=taps), False)


@pytest.mark.parametrize("channels", [3, 1])
def test_layouts_and_dtypes(channels):
    image = torch.randint(0, 256, (4, channels, 20, 17), dtype=torch.uint8)
    size = (16, 16)
    p = plain([torch.empty(20, 17)] * 4, size, FLIP=1, SIGMA=0.8).repeat(2, 1)
    p[:, Column.ERASE_TOP :] = torch.tensor([3.0, 2.0, 4.0, 5.0])
    packed = Packed.of(list(image.permute(0, 2, 3, 1).contiguous()))
    planes = Packed(image.reshape(-1), packed.offsets, packed.sizes, channels)
    one, _ = emulated(packed, p, size, taps=5)
    agree(one, true(packed, p, size, taps=5), False)
    for dtype in DTYPES:
        for last in (False, True):
            for images, planar in ((packed, False), (planes, True)):
                made, _ = emulated(
                    images, p, size, taps=5, dtype=dtype, channels_last=last, planar=planar
                )
                assert torch.equal(made, one.to(dtype))


def test_parameters_are_kept_within_what_they_may_be():
    images = Packed.of([torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8)])
    generator = torch.Generator().manual_seed(0)
    wild = torch.tensor([torch.nan, torch.inf, -torch.inf, -1, 0, 0.5, 1, 2.7, 3, 8, 50, 1e9])
    p = wild[torch.randint(len(wild), (300, len(Column)), generator=generator)]
    # Factors as large as they may be would have roundings as large.
    p[:, Column.BRIGHTNESS : Column.HUE].clamp_(max=3)
    agree(emulated(images, p, (6, 6), taps=3)[0], true(images, p, (6, 6), taps=3), False)


def test_an_image_that_is_not_there_gives_nan():
    images = Packed.of([torch.randint(0, 256, (9, 9, 3), dtype=torch.uint8)] * 5)
    p = plain([torch.empty(9, 9)] * 5, (6, 6))
    right, _ = emulated(images, p, (6, 6))
    images.sizes[1, 0], images.sizes[2, 1], images.offsets[3] = 0, 2**40, -1
    images.offsets[4] += 1
    mine, _ = emulated(images, p, (6, 6))
    assert torch.equal(mine[0], right[0])
    assert mine[1:].isnan().all()


@pytest.mark.parametrize(
    ("size", "taps", "on_chip", "threads"),
    [((224, 224), 23, H200, 320), ((224, 224), 23, A100, 640), ((224, 224), 23, SMALL, 640),
     ((32, 32), 3, SMALL, 160), ((96, 96), 9, H200, 160), ((3, 9000), 1, H200, 0)],
    ids=str,
)  # fmt: skip
def test_as_planned(size, taps, on_chip, threads):
    """Blocks of the number of threads that chips are to have, in the memory that they have."""
    source = pictures(2, largest=400)
    source[0] = torch.randint(0, 256, (350, 333, 3), dtype=torch.uint8)
    images = Packed.of(source)
    p = plain(source, size, ORDER=20, CONTRAST=1.3, SATURATION=0.4, HUE=0.1, SIGMA=2.0 * (taps > 1))
    mine, used = emulated(images, p, size, taps=taps, on_chip=on_chip, order=SHUFFLED)
    assert used == threads
    agree(mine, true(images, p, size, taps=taps), False)


def test_a_crop_of_many_pixels():
    """Two million of them to a few, in memory for no more than a view of those."""
    images = Packed.of([torch.randint(0, 256, (20, 100_000, 1), dtype=torch.uint8)])
    p = augment_parameters(images.sizes, torch.arange(1), 0, 0, (4, 5), Chances())
    mine, _ = emulated(images, p, (4, 5), floats=fewest((4, 5), 1, 1))
    agree(mine, true(images, p, (4, 5)), False)


def test_ratios_are_the_references_to_the_bit():  # whole pixels would hide the last one
    x = torch.linspace(-14, 14, 10001, dtype=torch.float64)
    mine = torch.empty_like(x)
    emulator().exponentials(pointer(x), ctypes.c_int64(len(x)), pointer(mine))
    assert torch.equal(mine, _exp(x))
