"""augment: the reference's views, whoever makes them; its arithmetic is torchvision's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastssl
from bench.ops.bench_augment import by_torchvision
from fastssl.ops import Packed, augment
from fastssl.reference.augment_parameters import Chances, Column, augment_parameters
from tests.compat.agreement import peer

EVERYTHING = Chances(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    flip_vertical=0.2,
    turn=0.3,
    jitter=0.8,
    brightness=(0.2, 1.8),
    contrast=(0.2, 1.8),
    saturation=(0.2, 1.8),
    hue=(-0.2, 0.2),
    grey=0.2,
    blur=0.5,
    solarize=0.2,
    erase=0.3,
)
QUANTIZED = pytest.mark.parametrize("quantized", [False, True], ids=["float", "uint8"])
BYTES = 1 / 255


def pictures(count, colours=3, largest=80):
    """uint8 [H, W, C], of sizes from one pixel on; smooth ones and noise."""
    g = torch.Generator().manual_seed(count + colours)
    images = []
    for i, (h, w) in enumerate(torch.randint(1, largest, (count, 2), generator=g).tolist()):
        if i % 2:
            x = torch.rand(1, colours, h, w, generator=g)
        else:
            x = torch.rand(1, colours, 5, 7, generator=g)
            x = F.interpolate(x, (h, w), mode="bicubic").clamp(0, 1)
        images.append((x[0] * 255).byte().permute(1, 2, 0).contiguous())
    return images


def plain(images, size, **columns):
    """Parameters that only resize whole images, but for the columns named."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    p = augment_parameters(sizes, torch.arange(len(images)), 0, 0, size, Chances())
    for name, value in columns.items():
        p[:, Column[name]] = value
    return p


@pytest.mark.instruction_sets
@QUANTIZED
@pytest.mark.parametrize("colours", [3, 1])
@pytest.mark.parametrize("size", [(24, 24), (19, 19), (1, 1)], ids=str)
def test_native_is_the_reference(size, colours, quantized):
    images = Packed.of(pictures(60, colours))
    p = augment_parameters(images.sizes, torch.arange(60), 7, 0, size, EVERYTHING)
    options = dict(taps=min(9, 2 * size[0] - 1), std=(0.25,), mean=(0.4,), quantized=quantized)
    with fastssl.use_backend("native"):
        mine = augment(images, p, size, **options)
    with fastssl.use_backend("reference"):
        true = augment(images, p, size, **options)
    away = (mine - true).abs() * 0.25
    if not quantized:
        assert away.max() <= 1e-5
    else:  # a float32 rounding may put a number on the other side of a whole one, now and then
        assert away.max() <= 1.1 * BYTES
        assert (away > 0.5 * BYTES).float().mean() <= 1e-4


@pytest.mark.instruction_sets
@QUANTIZED
@pytest.mark.parametrize(
    ("source", "size"),
    [
        *[((1, 1), (5, 3)), ((3, 700), (8, 8)), ((90, 2), (64, 33)), ((401, 300), (17, 224))],
        ((2, 2999), (3, 201)),
    ],
    ids=str,
)
def test_tiny_and_huge(source, size, quantized):
    images = Packed.of([torch.randint(0, 256, (*source, 3), dtype=torch.uint8)])
    p = plain([torch.empty(*source, 3)], size)
    mine = augment(images, p, size, quantized=quantized)
    with fastssl.use_backend("reference"):
        true = augment(images, p, size, quantized=quantized)
    assert (mine - true).abs().max() <= (1e-6 if quantized else 1e-5)


@pytest.mark.instruction_sets
@pytest.mark.parametrize("size", [(32, 32), (31, 48)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_many_views_are_as_few(dtype, size):  # more of them are written past the caches
    images = Packed.of(pictures(30))
    chances = EVERYTHING._replace(turn=0.0)
    p = augment_parameters(images.sizes, torch.arange(30), 7, 0, size, chances).repeat(24, 1)
    many = augment(images, p, size, taps=9, dtype=dtype)
    assert many.numel() * many.element_size() > 2**21
    few = [augment(images, part, size, taps=9, dtype=dtype) for part in p.split(30)]
    assert torch.equal(many, torch.cat(few))


@pytest.mark.instruction_sets
def test_resize_to_bytes_is_torchs_own():
    for image in pictures(20):
        size = (13, 40)
        x = image.permute(2, 0, 1)[None].contiguous()
        want = F.interpolate(x, size, mode="bilinear", antialias=True)
        for backend in ("native", "reference"):
            with fastssl.use_backend(backend):
                got = augment(Packed.of([image]), plain([image], size), size, quantized=True)
            assert torch.equal((got * 255).round().byte(), want)


ALONE = {
    "brightness": {"ORDER": 0, "BRIGHTNESS": 1.7},
    "contrast": {"ORDER": 0, "CONTRAST": 0.3},
    "more contrast": {"ORDER": 0, "CONTRAST": 1.8},
    "saturation": {"ORDER": 0, "SATURATION": 1.9},
    "hue": {"ORDER": 0, "HUE": 0.13},
    "hue back": {"ORDER": 0, "HUE": -0.5},
    "grey": {"GREY": 1},
    "blur": {"SIGMA": 1.1},
    "sharp": {"SIGMA": 0.1},
    "solarize": {"SOLARIZE": 100},
    "flips": {"FLIP": 1, "FLIP_VERTICAL": 1},
    "turn": {"TURNS": 1},
    **{f"order {i}": {"ORDER": i, "BRIGHTNESS": 1.2, "CONTRAST": 0.7, "SATURATION": 1.3,
                      "HUE": 0.1} for i in range(24)},
}  # fmt: skip


def torchvisions(f, image, p, size, taps, quantized):
    """A view, in units of 1/255, by torchvision's functions in the order of the parameters."""
    x = image.permute(2, 0, 1)
    x = x if quantized else f.to_dtype(x, torch.float32, scale=True)
    x = by_torchvision(f, x, p.tolist(), size, taps)
    return x.float() if quantized else x * 255


@QUANTIZED
@pytest.mark.parametrize("what", ALONE)
def test_is_torchvisions(what, quantized):
    f = peer("torchvision.transforms.v2", "torchvision").functional
    size, taps, images = (21, 21), 7, pictures(8)
    p = plain(images, size, **ALONE[what])
    mine = augment(Packed.of(images), p, size, taps=taps, quantized=quantized) * 255
    for image, row, view in zip(images, p, mine, strict=True):
        want = torchvisions(f, image, row, size, taps, quantized)
        assert (view - want).abs().max() <= (1.001 if quantized else 255e-5)


def test_all_at_once_is_torchvisions():
    """Pixels are whole numbers after each of up to nine steps, and nearly all come out the same."""
    f = peer("torchvision.transforms.v2", "torchvision").functional
    size, images = (24, 24), pictures(60)
    chances = EVERYTHING._replace(erase=0.0)
    sizes = torch.tensor([image.shape[:2] for image in images])
    p = augment_parameters(sizes, torch.arange(60), 3, 1, size, chances)
    mine = augment(Packed.of(images), p, size, taps=9, quantized=True) * 255
    want = [torchvisions(f, i, row, size, 9, True) for i, row in zip(images, p, strict=True)]
    away = (mine - torch.stack(want)).abs()
    assert (away > 0.5).float().mean() < 1e-3
    assert away.max() < 4


@pytest.mark.instruction_sets
def test_layouts_and_dtypes():
    image = torch.randint(0, 256, (4, 3, 20, 17), dtype=torch.uint8)
    p = plain([torch.empty(20, 17)] * 4, (16, 16), FLIP=1, SIGMA=0.8).repeat(2, 1)
    one = augment(image, p, (16, 16), taps=5)
    assert one.shape == (8, 3, 16, 16)
    assert torch.equal(one[:4], one[4:])
    last = image.permute(0, 2, 3, 1).contiguous()
    packed = Packed.of(list(last))
    for other in (last, packed, image.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(augment(other, p, (16, 16), taps=5), one)
    p[:, Column.ERASE_TOP :] = torch.tensor([3.0, 2.0, 4.0, 5.0])
    for size in ((16, 16), (5, 7)):  # whole vectors, and not
        for picture in (image, image[:, :1]):
            one = augment(picture, p, size, taps=5)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                made = augment(picture, p, size, taps=5, dtype=dtype)
                assert torch.equal(made, one.to(dtype))
                beside = augment(picture, p, size, taps=5, dtype=dtype, channels_last=True)
                assert torch.equal(beside, made)
                assert beside.is_contiguous(memory_format=torch.channels_last)


def test_bitwise_the_same_at_any_number_of_threads_and_in_any_batch():
    images = Packed.of(pictures(30))
    p = augment_parameters(images.sizes, torch.arange(30), 1, 0, (20, 20), EVERYTHING)
    whole = augment(images, p, (20, 20), taps=5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(augment(images, p, (20, 20), taps=5), whole)
    finally:
        torch.set_num_threads(threads)
    alone = Packed(images.data, images.offsets[7:8], images.sizes[7:8])
    assert torch.equal(augment(alone, p[7:8], (20, 20), taps=5), whole[7:8])


def test_parameters_are_kept_within_what_they_may_be():
    image = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    p = plain([torch.empty(9, 9)], (6, 6)).repeat(4, 1)
    p[0, Column.TOP], p[0, Column.HEIGHT] = 7, 50
    p[1, Column.WIDTH], p[1, Column.LEFT] = math.nan, -3
    p[2, Column.ERASE_LEFT : Column.ERASE_WIDTH + 1] = torch.tensor([5.0, 9.0, 9.0])
    p[3, Column.ORDER], p[3, Column.SOLARIZE] = 1e9, -math.inf
    mine = augment(image, p, (6, 6))
    with fastssl.use_backend("reference"):
        assert (mine - augment(image, p, (6, 6))).abs().max() < 1e-6
    p[0, Column.TOP], p[0, Column.HEIGHT] = 0, 9
    assert torch.equal(augment(image, p[:1], (6, 6)), mine[:1])


def test_bad_input_is_named():
    image, p = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), plain([torch.empty(8, 8)] * 2, (4, 4))
    data = torch.zeros(100, dtype=torch.uint8)
    at, one = torch.tensor([0]), torch.tensor([[4, 4]])
    long = torch.empty(1, 1, 1, 2**24, dtype=torch.uint8)
    wrong = [
        (TypeError, "images must be a uint8", lambda: augment(image.float(), p, (4, 4))),
        (ValueError, "images must have shape", lambda: augment(image[:, :2], p, (4, 4))),
        (ValueError, "none zero", lambda: augment(image[:0], p[:0], (4, 4))),
        (ValueError, r"\[R, 19\]", lambda: augment(image, p[:, :7], (4, 4))),
        (ValueError, "multiple of 2", lambda: augment(image, p[:1], (4, 4))),
        (TypeError, "parameters", lambda: augment(image, p.double(), (4, 4))),
        (ValueError, "size must be", lambda: augment(image, p, (0, 4))),
        (ValueError, "taps must be odd", lambda: augment(image, p, (4, 4), taps=4)),
        (ValueError, r"\[1, 7\]", lambda: augment(image, p, (4, 4), taps=9)),
        (ValueError, "std must be", lambda: augment(image, p, (4, 4), std=(1, 0, 1))),
        (ValueError, "mean must be", lambda: augment(image, p, (4, 4), mean=(0, 0))),
        (TypeError, "dtype must", lambda: augment(image, p, (4, 4), dtype=torch.float64)),
        (ValueError, "48 bytes", lambda: augment(Packed(data[:9], at, one), p[:1], (4, 4))),
        (ValueError, "no pixels", lambda: augment(Packed(data, at, one * 0), p[:1], (4, 4))),
        (ValueError, r"2\^24", lambda: augment(long, p[:1], (4, 4))),
        (ValueError, r"2\^24", lambda: augment(Packed(data, at, one << 22), p[:1], (4, 4))),
        (ValueError, "negative", lambda: augment(Packed(data, at - 1, one), p[:1], (4, 4))),
        (ValueError, "square", lambda: augment(image, p + (torch.arange(19) == 6), (4, 5))),
        (ValueError, r"images\[1\]", lambda: Packed.of([image[0], image[0].float()])),
        (ValueError, "at least one", lambda: Packed.of([])),
    ]
    for error, text, call in wrong:
        with pytest.raises(error, match=text):
            call()


def test_opcheck_and_compile():
    image = torch.randint(0, 256, (2, 3, 12, 9), dtype=torch.uint8)
    p = plain([torch.empty(12, 9)] * 2, (8, 8), ORDER=5, CONTRAST=1.5, SIGMA=1)
    packed = Packed.of(list(image.permute(0, 2, 3, 1).contiguous()))
    arguments = (packed.data, packed.offsets, packed.sizes, 3, False, p, 8, 8, 5, [0.5] * 3)
    for last in (False, True):
        more = ([0.25] * 3, False, torch.float32, last)
        torch.library.opcheck(torch.ops.fastssl.augment_fwd, (*arguments, *more))
    whole = torch.compile(
        lambda x, p: augment(x, p, (8, 8), taps=5).mean(), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(whole(image, p), augment(image, p, (8, 8), taps=5).mean())
