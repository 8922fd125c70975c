"""``augment``: views of images by given parameters, each image in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_size
from fastssl.ops.library import define
from fastssl.reference.augment_parameters import Column

LONGEST = 2**24  # pixels of a side: whole numbers that float32 holds
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packed:
    """Images of different sizes, one after the other: ``data[offsets[i]:]`` holds image i.

    Args:
        data: uint8, shape [bytes]; rows of pixels, and of a pixel its channels, as decoders give
            them ([H, W, C]).
        offsets: int64, shape [B]: where an image begins.
        sizes: int64, shape [B, 2]: its height and width.
        channels: 1 or 3.
    """

    data: Tensor
    offsets: Tensor
    sizes: Tensor
    channels: int = 3

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def device(self) -> torch.device:
        """That of the data."""
        return self.data.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packed:
        """The same images on a device."""
        data, offsets, sizes = (
            x.to(device, non_blocking=non_blocking) for x in (self.data, self.offsets, self.sizes)
        )
        return Packed(data, offsets, sizes, self.channels)

    @staticmethod
    def of(images: Sequence[Tensor]) -> Packed:
        """Images uint8 [H, W, C], copied one after the other."""
        if not images:
            raise ValueError("images must hold at least one")
        channels = images[0].shape[-1] if getattr(images[0], "shape", ()) else 3
        for i, image in enumerate(images):
            if not isinstance(image, Tensor):
                raise TypeError(f"images[{i}] must be a tensor, not {type(image).__name__}")
            fits = image.dim() == 3 and image.shape[2] == channels and image.numel() > 0
            if image.dtype != torch.uint8 or not fits:
                raise ValueError(
                    f"images[{i}] must be uint8 of shape [H, W, {channels}], none zero, "
                    f"not {image.dtype} of shape {list(image.shape)}"
                )
        counts = torch.tensor([image.numel() for image in images])
        sizes = torch.tensor([image.shape[:2] for image in images])
        data = torch.cat([image.reshape(-1) for image in images])
        return Packed(data, counts.cumsum(0) - counts, sizes, channels)


def augment(
    images: Tensor | Packed,
    parameters: Tensor,  # [R, len(Column)]
    size: tuple[int, int],
    *,
    taps: int = 1,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    quantized: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Views of images: crop, resize, flips, turns, jitter, grey, blur, solarize, normalise, erase.

    ``out_r = (f(image_{r mod B}; parameters_r) / 255 − mean) / std``, with torchvision's
    arithmetic; :func:`fastssl.reference.augment` says it in full. Rows that are the same give the
    same view, on every backend to 1e-5.

    Args:
        images: B of one size, uint8 [B, C, H, W] or [B, H, W, C], C = 1 or 3 (where both could be
            meant, [B, C, H, W]); or of any sizes, packed.
        parameters: float32 [R, 19], R a multiple of B: row r is for image ``r mod B``; see
            :class:`fastssl.augment.Column`. Crops are kept within their images and patches within
            the views, other numbers within what they may be; NaN counts as 0.
        size: height and width of the views.
        taps: of the blur, odd, less than twice the smaller side.
        mean: of pixels in [0, 1]; C numbers, or one for all channels.
        std: as ``mean``, not zero.
        quantized: compute in whole numbers of 0 to 255, as torchvision on uint8 tensors; False: in
            float32, as on float tensors.
        dtype: float32, bfloat16 or float16.
        channels_last: the memory format of the result.

    Returns:
        ``dtype``, shape [R, C, *size].

    Raises:
        TypeError: images that are not uint8, parameters not float32, another dtype.
        ValueError: an empty batch, an image without pixels, of 2^24 pixels a side or more, or
            beyond the end of the data (on CUDA, which would have to be waited for, its views are
            NaN), channels other than 1 or 3, rows that are no multiple of the images, a size, taps,
            mean or std that is not as above, devices that differ, quarter turns of a view that is
            not square (on CUDA those are not turned).
        BackendError: a backend was asked for that cannot serve these tensors.
    """
    planar = not isinstance(images, Packed) and _is_planar(images)
    packed = images if isinstance(images, Packed) else _packed(images, planar)
    mean, std = (_each(n, x, packed.channels) for n, x in (("mean", mean), ("std", std)))
    _check(packed, packed is images, parameters, size, taps, mean, std, dtype)
    backend = backends.select("augment", packed.data.device.type)
    run = _reference_fwd if backend == "reference" else backends.raw("augment_fwd", backend)
    return run(
        packed.data,
        packed.offsets,
        packed.sizes,
        packed.channels,
        planar,
        parameters,
        *size,
        taps,
        mean,
        std,
        quantized,
        dtype,
        channels_last,
    )


def kept_within(parameters: Tensor, sizes: Tensor, size: tuple[int, int]) -> Tensor:
    """Parameters that the reference may take as they are; kernels do the same themselves
    (csrc/shared/augment_bounds.h)."""
    c = Column
    p = parameters.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    rows = len(p) // len(sizes)

    def rectangle(part: Tensor, least: int, limits: Tensor) -> Tensor:
        extent = torch.minimum(part[:, 2:].floor().clamp(min=least), limits)  # [R, 2]
        start = torch.minimum(part[:, :2].floor().clamp(min=0), limits - extent)
        return torch.cat([start, extent], dim=1)

    image, view = sizes.to(p.dtype).repeat(rows, 1), p.new_tensor([list(size)])
    crop = rectangle(p[:, c.TOP : c.FLIP], 1, image)
    patch = rectangle(p[:, c.ERASE_TOP :], 0, view)
    limits = {
        **{c.FLIP: (0, 1), c.FLIP_VERTICAL: (0, 1), c.TURNS: (0, 3), c.ORDER: (-1, 23)},
        **{c.BRIGHTNESS: (0, 1e6), c.CONTRAST: (0, 1e6), c.SATURATION: (0, 1e6)},
        **{c.HUE: (-0.5, 0.5), c.GREY: (0, 2), c.SIGMA: (0, 1e6), c.SOLARIZE: (0, math.inf)},
    }
    low, high = (p.new_tensor(bound) for bound in zip(*limits.values(), strict=True))
    rest = p[:, c.FLIP : c.ERASE_TOP].clamp(low, high)
    return torch.cat([crop, rest, patch], dim=1)


def image_sizes(images: Tensor | Packed) -> Tensor:
    """Heights and widths, int64 [B, 2], on the images' device."""
    if isinstance(images, Packed):
        _check_packed(images)
        return images.sizes
    height, width = images.shape[2:] if _is_planar(images) else images.shape[1:3]
    sizes = torch.full((len(images), 2), height, device=images.device)  # filled there, not copied
    if width != height:
        sizes[:, 1] = width
    return sizes


def _is_planar(images: Tensor) -> bool:
    """Whether [B, C, H, W] rather than [B, H, W, C]."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        what = images.dtype if isinstance(images, Tensor) else type(images).__name__
        hint = ""
        if isinstance(images, Tensor) and images.is_floating_point():
            hint = ": pixels as they are decoded, 0 to 255"
        raise TypeError(f"images must be a uint8 tensor or Packed, not {what}{hint}")
    if images.dim() != 4 or 0 in images.shape or not {1, 3} & {images.shape[1], images.shape[3]}:
        raise ValueError(
            "images must have shape [B, C, H, W] or [B, H, W, C], C = 1 or 3, none zero, "
            f"not {list(images.shape)}"
        )
    return images.shape[1] in (1, 3)


def _packed(images: Tensor, planar: bool) -> Packed:
    images = images.contiguous()
    count, channels = len(images), images.shape[1 if planar else 3]
    height, width = images.shape[2:] if planar else images.shape[1:3]
    if max(height, width) >= LONGEST:
        raise ValueError(
            f"images must have fewer than 2^24 pixels a side, not {list(images.shape)}"
        )
    bytes_each = channels * height * width
    offsets = torch.arange(0, count * bytes_each, bytes_each, device=images.device)
    return Packed(images.view(-1), offsets, image_sizes(images), channels)


def _each(name, numbers, channels):
    try:
        numbers = [float(x) for x in numbers]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {channels} numbers, not {numbers!r}") from error
    return numbers * channels if len(numbers) == 1 else numbers


def _check(images: Packed, given: bool, parameters, size, taps, mean, std, dtype) -> None:
    _check_packed(images)
    if not isinstance(parameters, Tensor) or parameters.dtype != torch.float32:
        raise TypeError("parameters must be a float32 tensor")
    if parameters.dim() != 2 or parameters.shape[1] != len(Column):
        raise ValueError(
            f"parameters must have shape [R, {len(Column)}], not {list(parameters.shape)}"
        )
    if len(parameters) == 0 or len(parameters) % len(images):
        raise ValueError(
            f"parameters must have a multiple of {len(images)} rows, the images, "
            f"not {len(parameters)}"
        )
    if parameters.device != images.device:
        raise ValueError(
            f"parameters must be on the images' device, {images.device}, not {parameters.device}"
        )
    check_size(size)
    # What only the numbers in a tensor can say: elsewhere that would wait for the device.
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        if given:
            _check_memory(images)
        if size[0] != size[1] and parameters[:, Column.TURNS].gt(0).any():
            raise ValueError(f"size must be square where parameters turn views, not {tuple(size)}")
    if not isinstance(taps, int) or taps % 2 == 0 or not 1 <= taps < 2 * min(size):
        raise ValueError(f"taps must be odd and in [1, {2 * min(size) - 1}], not {taps}")
    for name, numbers in (("mean", mean), ("std", std)):
        wrong = len(numbers) != images.channels or not all(map(math.isfinite, numbers))
        if wrong or (name == "std" and 0 in numbers):
            raise ValueError(
                f"{name} must be {images.channels} finite numbers (std: not 0), not {numbers}"
            )
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


def _check_packed(images: Packed) -> None:
    """What holds whatever the numbers in its tensors are."""
    data, offsets, sizes = images.data, images.offsets, images.sizes
    if data.dtype != torch.uint8 or images.channels not in (1, 3):
        raise TypeError(
            f"images must be uint8 of 1 or 3 channels, not {data.dtype} of {images.channels}"
        )
    if data.dim() != 1:
        raise ValueError(f"images.data must have shape [bytes], not {list(data.shape)}")
    whole = offsets.dtype == sizes.dtype == torch.int64
    if not whole or offsets.dim() != 1 or list(sizes.shape) != [len(offsets), 2]:
        raise ValueError(
            "images must have offsets [B] and sizes [B, 2], both int64, "
            f"not {offsets.dtype} {list(offsets.shape)} and {sizes.dtype} {list(sizes.shape)}"
        )
    if len(offsets) == 0:
        raise ValueError("images must hold at least one")
    for name, tensor in (("offsets", offsets), ("sizes", sizes)):
        if tensor.device != data.device:
            raise ValueError(
                f"images.{name} must be on the device of their data, {data.device}, "
                f"not {tensor.device}"
            )


def _check_memory(images: Packed) -> None:
    """What only the numbers say."""
    height, width = images.sizes.unbind(dim=1)
    if images.sizes.min() < 1:
        i = int(torch.minimum(height, width).argmin())
        raise ValueError(f"image {i} has no pixels: its size is {images.sizes[i].tolist()}")
    if images.sizes.max() >= LONGEST:
        i = int(torch.maximum(height, width).argmax())
        raise ValueError(
            f"image {i} must have fewer than 2^24 pixels a side, not {images.sizes[i].tolist()}"
        )
    end = images.offsets + height * width * images.channels
    if images.offsets.min() < 0:
        raise ValueError(f"images.offsets must not be negative, as {int(images.offsets.min())}")
    if end.max() > images.data.numel():
        raise ValueError(
            f"images.data must hold every image, {int(end.max())} bytes, not {images.data.numel()}"
        )


def _fwd_fake(
    data, offsets, sizes, channels, planar, parameters, height, width, taps, mean, std,
    quantized, dtype, channels_last,
):  # fmt: skip
    out = data.new_empty((parameters.shape[0], channels, height, width), dtype=dtype)
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


def _reference_fwd(
    data, offsets, sizes, channels, planar, parameters, height, width, taps, mean, std,
    quantized, dtype, channels_last,
):  # fmt: skip
    images = []
    for begin, (h, w) in zip(offsets.tolist(), sizes.tolist(), strict=True):
        pixels = data[begin : begin + h * w * channels]
        shape = (channels, h, w) if planar else (h, w, channels)
        images.append(pixels.view(shape) if planar else pixels.view(shape).permute(2, 0, 1))
    images = images * (len(parameters) // len(images))
    size = (height, width)
    parameters = kept_within(parameters, sizes, size)
    out = references.augment(images, parameters, size, taps, mean, std, quantized).to(dtype)
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


define(
    "augment_fwd(Tensor data, Tensor offsets, Tensor sizes, int channels, bool planar, "
    "Tensor parameters, int height, int width, int taps, float[] mean, float[] std, "
    "bool quantized, ScalarType dtype, bool channels_last) -> Tensor",
    fake=_fwd_fake,
    reference=_reference_fwd,
)
backends.register("augment", "native")
