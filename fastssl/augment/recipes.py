"""What is done to images, as data: views, and recipes of views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from torch import Tensor

from fastssl.augment.arguments import Range, as_range, as_size, check_range, number, shown
from fastssl.ops.augment import DTYPES, Packed, augment, image_sizes
from fastssl.ops.augment_parameters import augment_parameters
from fastssl.ops.checks import check_seed
from fastssl.reference.augment_parameters import Chances

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 1e6  # of a factor, a ratio, a sigma: kernels take no more


@dataclass(frozen=True)
class View:
    """What may happen to one view of an image, in this order; every default leaves it alone.

    Args:
        size: side of the view in pixels, or height and width.
        scale: area of the crop, share of the image's.
        ratio: width / height of the crop; None: the image's own.
        flip: probability of left to right.
        flip_vertical: probability of upside down.
        turn: probability of one, two or three quarter turns; square views only.
        jitter: probability of the next four, in an order drawn for each sample.
        brightness: v for a factor in [max(0, 1 − v), 1 + v], or the range itself.
        contrast: as brightness.
        saturation: as brightness.
        hue: v ≤ 1/2 for a shift in [−v, v], in turns, or the range itself.
        grey: probability of no colour.
        grey_first: whether before the jitter rather than after it.
        blur: probability of a Gaussian blur.
        sigma: range of its standard deviation, in pixels of the view.
        taps: its width in pixels, odd; None: the odd number at a tenth of the smaller side or next
            above.
        solarize: probability that what is not below the threshold is inverted.
        threshold: of 255.
        erase: probability that a rectangle becomes 0, after normalisation.
        erase_scale: its area, share of the view's.
        erase_ratio: its height / width.

    Raises:
        TypeError: what should be a number or a range of two is none.
        ValueError: a probability outside [0, 1], a range that is not one, NaN, factors, ratios or
            sigmas above a million, a size or taps that are not positive, even taps, turns of views
            that are not square.
    """

    size: int | tuple[int, int] = 224
    scale: Range = (1.0, 1.0)
    ratio: Range | None = None
    flip: float = 0.0
    flip_vertical: float = 0.0
    turn: float = 0.0
    jitter: float = 0.0
    brightness: float | Range = 0.0
    contrast: float | Range = 0.0
    saturation: float | Range = 0.0
    hue: float | Range = 0.0
    grey: float = 0.0
    grey_first: bool = False
    blur: float = 0.0
    sigma: Range = (0.1, 2.0)
    taps: int | None = None
    solarize: float = 0.0
    threshold: float = 128.0
    erase: float = 0.0
    erase_scale: Range = (0.02, 0.33)
    erase_ratio: Range = (0.3, 3.3)
    chances: Chances = field(init=False, repr=False, compare=False)  # as the sampler takes them

    def __post_init__(self) -> None:
        probabilities = ("flip", "flip_vertical", "turn", "jitter", "grey", "blur", "solarize")
        for name in (*probabilities, "erase"):
            value = number(name, getattr(self, name))
            if not 0 <= value <= 1:  # NaN as well
                raise ValueError(f"{name} must be a probability, in [0, 1], not {value}")
        for name in ("brightness", "contrast", "saturation", "hue"):
            if not isinstance(getattr(self, name), Real):
                as_range(self, name)
        for name in ("scale", "ratio", "sigma", "erase_scale", "erase_ratio"):
            if name != "ratio" or self.ratio is not None:
                as_range(self, name)
        check_range("scale", self.scale, 0.0, 1.0, above=True)
        check_range("ratio", self.ratio or (1.0, 1.0), 1 / MOST, MOST)
        check_range("sigma", self.sigma, 0.0, MOST, above=True)
        check_range("erase_scale", self.erase_scale, 0.0, 1.0)
        check_range("erase_ratio", self.erase_ratio, 1 / MOST, MOST)
        for name in ("brightness", "contrast", "saturation"):
            check_range(name, self._factor(name), 0.0, MOST)
        check_range("hue", self._factor("hue", 0.0), -0.5, 0.5)
        if not number("threshold", self.threshold) >= 0:
            raise ValueError(f"threshold must not be negative, not {self.threshold}")
        if not isinstance(self.size, int):
            as_size(self, "size")
        if min(self.shape) < 1:
            raise ValueError(f"size must be one or two positive whole numbers, not {self.size}")
        height, width = self.shape
        if self.turn and height != width:
            raise ValueError(f"turn needs a square view, not {height} × {width}")
        taps = 1 if self.taps is None else self.taps
        if not isinstance(taps, Integral) or taps < 1 or taps % 2 == 0:
            raise ValueError(f"taps must be odd, whole and positive, not {self.taps!r}")
        object.__setattr__(self, "chances", self._chances())

    def __repr__(self) -> str:
        return shown(self)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def blur_taps(self) -> int:
        """Width of the blur, no wider than reflection allows."""
        side = min(self.shape)
        tenth = int(0.1 * side) if self.taps is None else int(self.taps)
        return min(tenth // 2, side - 1) * 2 + 1

    def _chances(self) -> Chances:
        return Chances(
            self.scale,
            self.ratio,
            self.flip,
            self.flip_vertical,
            self.turn,
            self.jitter,
            self._factor("brightness"),
            self._factor("contrast"),
            self._factor("saturation"),
            self._factor("hue", 0.0),
            self.grey,
            self.grey_first,
            self.blur,
            self.sigma,
            self.solarize,
            self.threshold,
            self.erase,
            self.erase_scale,
            self.erase_ratio,
        )

    def _factor(self, name: str, centre: float = 1.0) -> Range:
        value = getattr(self, name)
        if isinstance(value, tuple):
            return value
        if not value >= 0:  # NaN as well
            raise ValueError(f"{name} must not be negative, not {value}")
        low = centre - value
        return (max(0.0, low) if centre else low, centre + value)


@dataclass(frozen=True)
class Recipe:
    """Views of images: ``views = recipe(images, indices, seed)``.

    What happens to a sample is a function of (seed, its index, the view), whatever batch, device or
    number of processes it comes in. With a seed for each epoch, training is repeatable and resumes
    exactly, and any view can be made again.

    With CUDA's kernels nothing waits for the device and nothing comes from the host, so that a CUDA
    graph may hold a call. The seed is then one for all replays: other views come by other indices.

    Args:
        views: what is done to each.
        mean: of pixels in [0, 1], a number for each channel, or one for all.
        std: as ``mean``.
        quantized: pixels are whole numbers after each step, as torchvision has them on uint8
            tensors and Pillow images; else float32.

    Raises:
        TypeError: views that are none, ``mean`` or ``std`` that hold no numbers.
        ValueError: no views, ``mean`` or ``std`` that are not one or three finite numbers, or a
            ``std`` of 0.
    """

    views: tuple[View, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    quantized: bool = False
    # Of views of one size and blur, which one call makes.
    _stretches: tuple[slice, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("views", "mean", "std"):
            if not isinstance(getattr(self, name), Sequence):
                what = "hold View by View" if name == "views" else "be one or three numbers"
                raise TypeError(f"{name} must {what}, not {getattr(self, name)!r}")
            if not isinstance(getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.views:
            raise ValueError("views must hold at least one")
        for view in self.views:
            if not isinstance(view, View):
                raise TypeError(f"views must hold View by View, not {view!r}")
        for moment in (*self.mean, *self.std):
            number("mean and std", moment)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} must be one or three finite numbers, not {numbers}")
        if 0 in self.std:
            raise ValueError(f"std must not be 0, as in {self.std}")
        object.__setattr__(self, "_stretches", _stretches(self.views))

    def __repr__(self) -> str:
        return shown(self)

    def __call__(
        self,
        images: Tensor | Packed,
        indices: Tensor,  # [B]
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> list[Tensor]:
        """Random views.

        Args:
            images: uint8 [B, C, H, W] or [B, H, W, C], C = 1 or 3, or :class:`Packed`.
            indices: int64, shape [B]: each sample's number in its set, on the images' device.
            seed: 0 to 2^64 − 1.
            dtype: of the views: float32, bfloat16 or float16.
            channels_last: their memory format.

        Returns:
            A tensor for each view, [B, C, height, width], normalised; those of one size and blur
            that stand together share their memory.

        Raises:
            TypeError, ValueError: as of :func:`fastssl.ops.augment`; indices that are not int64
                [B], a seed that is no whole number or outside its range.
        """
        parameters = self.parameters(images, indices, seed)
        return self.apply(images, parameters, dtype=dtype, channels_last=channels_last)

    def parameters(self, images: Tensor | Packed, indices: Tensor, seed: int) -> list[Tensor]:
        """What is drawn for each view: float32 [B, 19], whose columns :class:`Column` names."""
        sizes, seed = check_draw(images, indices, seed)
        return [
            augment_parameters(sizes, indices, seed, v, view.shape, view.chances)
            for v, view in enumerate(self.views)
        ]

    def apply(
        self,
        images: Tensor | Packed,
        parameters: list[Tensor],
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> list[Tensor]:
        """Views by parameters that were drawn before, or made by hand; see ``__call__``."""
        if len(parameters) != len(self.views):
            raise ValueError(
                f"parameters must hold a tensor for each of the {len(self.views)} views, "
                f"not {len(parameters)}"
            )
        for v, rows in enumerate(parameters):
            if rows.dim() != 2 or len(rows) != len(images):
                raise ValueError(
                    f"parameters[{v}] must have a row for each of the {len(images)} images, "
                    f"not shape {list(rows.shape)}"
                )
        made: list[Tensor] = []
        for alike in self._stretches:
            view = self.views[alike.start]
            x = augment(
                images,
                torch.cat(list(parameters[alike])),
                view.shape,
                taps=view.blur_taps,
                mean=per_channel(self.mean, images),
                std=per_channel(self.std, images),
                quantized=self.quantized,
                dtype=dtype,
                channels_last=channels_last,
            )
            made += x.split(len(images))
        return made


def _stretches(views: tuple[View, ...]) -> tuple[slice, ...]:
    forms = [(view.shape, view.blur_taps) for view in views]
    begins = [i for i in range(len(forms)) if i == 0 or forms[i] != forms[i - 1]]
    return tuple(slice(*ends) for ends in zip(begins, [*begins[1:], len(forms)], strict=True))


def check_draw(images: Tensor | Packed, indices: Tensor, seed: int) -> tuple[Tensor, int]:
    """The images' heights and widths, int64 [B, 2], and the seed, where their samples' numbers and
    it are what draws take.

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: indices that are not int64 [B] or on another device, a seed outside its range.
    """
    sizes = image_sizes(images)
    tensor = isinstance(indices, Tensor)
    if not tensor or indices.dtype != torch.int64 or indices.shape != sizes.shape[:1]:
        what = f"{indices.dtype} of shape {list(indices.shape)}" if tensor else repr(indices)
        raise ValueError(f"indices must be int64 of shape [{len(sizes)}], not {what}")
    seed = check_seed(seed)
    if sizes.device != indices.device:
        raise ValueError(
            f"indices must be on the images' device, {sizes.device}, not {indices.device}"
        )
    return sizes, seed


def check_dtype(dtype: torch.dtype) -> None:
    """Raises TypeError where views cannot be of that dtype."""
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, bfloat16 or float16, not {dtype}")


def channels_of(images: Tensor | Packed) -> int:
    """1 or 3."""
    if isinstance(images, Packed):
        return images.channels
    return images.shape[1] if images.shape[1] in (1, 3) else images.shape[-1]


def per_channel(numbers: tuple[float, ...], images: Tensor | Packed) -> tuple[float, ...]:
    """Those of the images' channels: of grey ones, the first."""
    return numbers if channels_of(images) == 3 else numbers[:1]


PHOTO = View(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)
