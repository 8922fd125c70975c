"""Those of ``lightly.transforms``, as of lightly 1.6, that make crops of several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastssl.augment import View
from fastssl.compat.lightly_views import (
    IMAGENET_NORMALIZE,
    Degrees,
    Normalize,
    Pair,
    Transform,
)


@dataclass
class SwaVTransform(Transform):
    """lightly's ``SwaVTransform``: ``crop_counts`` views of each size; see :class:`Transform`.

    Raises:
        ValueError: sizes, counts and scales that are not equally many.
    """

    crop_sizes: tuple[int, ...] = (224, 96)
    crop_counts: tuple[int, ...] = (2, 6)
    crop_min_scales: tuple[float, ...] = (0.14, 0.05)
    crop_max_scales: tuple[float, ...] = (1.0, 0.14)
    hf_prob: float = 0.5
    vf_prob: float = 0.0
    rr_prob: float = 0.0
    rr_degrees: Degrees = None
    cj_prob: float = 0.8
    cj_strength: float = 1.0
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.8
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    gaussian_blur: float = 0.5
    sigmas: Pair = (0.1, 2)
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        each = _each(self, "crop_sizes", "crop_counts", "crop_min_scales", "crop_max_scales")
        return [
            self._view(size, (low, high), self.gaussian_blur)
            for size, count, low, high in each
            for _ in range(count)
        ]


@dataclass
class SMoGTransform(Transform):
    """lightly's ``SMoGTransform``: ``crop_counts`` views of each size; see :class:`Transform`.

    Raises:
        ValueError: sizes, counts, scales and probabilities that are not equally many.
    """

    crop_sizes: tuple[int, ...] = (224, 96)
    crop_counts: tuple[int, ...] = (4, 4)
    crop_min_scales: tuple[float, ...] = (0.2, 0.05)
    crop_max_scales: tuple[float, ...] = (1.0, 0.2)
    gaussian_blur_probs: tuple[float, ...] = (0.5, 0.1)
    gaussian_blur_sigmas: Pair = (0.1, 2)
    solarize_probs: tuple[float, ...] = (0.0, 0.2)
    hf_prob: float = 0.5
    cj_prob: float = 1.0
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        sizes = ("crop_sizes", "crop_counts", "crop_min_scales", "crop_max_scales")
        each = _each(self, *sizes, "gaussian_blur_probs", "solarize_probs")
        return [
            self._view(size, (low, high), blur, solarize)
            for size, count, low, high, blur, solarize in each
            for _ in range(count)
        ]


@dataclass
class SmoGViewTransform(Transform):
    """lightly's ``SmoGViewTransform``: one view; see :class:`Transform`."""

    crop_size: int = 224
    crop_min_scale: float = 0.2
    crop_max_scale: float = 1.0
    gaussian_blur_prob: float = 0.5
    sigmas: Pair = (0.1, 2)
    solarize_prob: float = 0.0
    hf_prob: float = 0.5
    cj_prob: float = 1.0
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE
    single = True

    def _views(self) -> list[View]:
        scale = (self.crop_min_scale, self.crop_max_scale)
        return [self._view(self.crop_size, scale, self.gaussian_blur_prob, self.solarize_prob)]


@dataclass
class DINOTransform(Transform):
    """lightly's ``DINOTransform``: two global views and ``n_local_views`` local ones, resized
    bilinearly; see :class:`Transform`. As there, the second global view's jitter has a strength of
    1/2, whatever ``cj_strength`` is."""

    global_crop_size: int = 224
    global_crop_scale: Pair = (0.4, 1.0)
    local_crop_size: int = 96
    local_crop_scale: Pair = (0.05, 0.4)
    n_local_views: int = 6
    hf_prob: float = 0.5
    vf_prob: float = 0
    rr_prob: float = 0
    rr_degrees: Degrees = None
    cj_prob: float = 0.8
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    gaussian_blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    sigmas: Pair = (0.1, 2)
    solarization_prob: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        return _global_and_local(self)


@dataclass
class DINOViewTransform(Transform):
    """lightly's ``DINOViewTransform``: one view, resized bilinearly; see :class:`Transform`."""

    crop_size: int = 224
    crop_scale: Pair = (0.4, 1.0)
    hf_prob: float = 0.5
    vf_prob: float = 0
    rr_prob: float = 0
    rr_degrees: Degrees = None
    cj_prob: float = 0.8
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    gaussian_blur: float = 1.0
    sigmas: Pair = (0.1, 2)
    solarization_prob: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE
    single = True

    def _views(self) -> list[View]:
        return [
            self._view(self.crop_size, self.crop_scale, self.gaussian_blur, self.solarization_prob)
        ]


@dataclass
class IBOTTransform(Transform):
    """lightly's ``IBOTTransform``: as :class:`DINOTransform`, of other scales."""

    global_crop_size: int = 224
    global_crop_scale: Pair = (0.25, 1.0)
    local_crop_size: int = 96
    local_crop_scale: Pair = (0.05, 0.25)
    n_local_views: int = 10
    hf_prob: float = 0.5
    cj_prob: float = 0.8
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    gaussian_blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    sigmas: Pair = (0.1, 2)
    solarization_prob: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        return _global_and_local(self)


@dataclass
class IBOTViewTransform(Transform):
    """lightly's ``IBOTViewTransform``: one view, resized bilinearly; see :class:`Transform`."""

    crop_size: int = 224
    crop_scale: Pair = (0.4, 1.0)
    hf_prob: float = 0.5
    cj_prob: float = 0.8
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    random_gray_scale: float = 0.2
    gaussian_blur: float = 1.0
    sigmas: Pair = (0.1, 2)
    solarization_prob: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE
    single = True

    def _views(self) -> list[View]:
        return [
            self._view(self.crop_size, self.crop_scale, self.gaussian_blur, self.solarization_prob)
        ]


@dataclass
class MSNTransform(Transform):
    """lightly's ``MSNTransform``: views of two sizes; see :class:`Transform`. As there, the focal
    views' jitter is that of the defaults, but for ``cj_prob`` and ``cj_strength``."""

    random_size: int = 224
    focal_size: int = 96
    random_views: int = 2
    focal_views: int = 10
    random_crop_scale: Pair = (0.3, 1.0)
    focal_crop_scale: Pair = (0.05, 0.3)
    cj_prob: float = 0.8
    cj_strength: float = 1.0
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.8
    cj_hue: float = 0.2
    gaussian_blur: float = 0.5
    sigmas: Pair = (0.1, 2)
    random_gray_scale: float = 0.2
    hf_prob: float = 0.5
    vf_prob: float = 0.0
    normalize: Normalize = IMAGENET_NORMALIZE
    FOCAL: ClassVar = dict(cj_bright=0.8, cj_contrast=0.8, cj_sat=0.8, cj_hue=0.2)

    def _views(self) -> list[View]:
        whole = self._view(self.random_size, self.random_crop_scale, self.gaussian_blur)
        focal = self._view(self.focal_size, self.focal_crop_scale, self.gaussian_blur, **self.FOCAL)
        return [whole] * self.random_views + [focal] * self.focal_views


@dataclass
class MSNViewTransform(Transform):
    """lightly's ``MSNViewTransform``: one view; see :class:`Transform`."""

    crop_size: int = 224
    crop_scale: Pair = (0.3, 1.0)
    cj_prob: float = 0.8
    cj_strength: float = 1.0
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.8
    cj_hue: float = 0.2
    gaussian_blur: float = 0.5
    sigmas: Pair = (0.1, 2)
    random_gray_scale: float = 0.2
    hf_prob: float = 0.5
    vf_prob: float = 0.0
    normalize: Normalize = IMAGENET_NORMALIZE
    single = True

    def _views(self) -> list[View]:
        return [self._view(self.crop_size, self.crop_scale, self.gaussian_blur)]


def _global_and_local(t: DINOTransform | IBOTTransform) -> list[View]:
    whole, part = t.global_crop_size, t.local_crop_size
    first, second, local = t.gaussian_blur
    return [
        t._view(whole, t.global_crop_scale, first),
        t._view(whole, t.global_crop_scale, second, t.solarization_prob, cj_strength=0.5),
        *[t._view(part, t.local_crop_scale, local)] * t.n_local_views,
    ]


def _each(t: Transform, *names: str) -> list[tuple]:
    """The arguments of each size."""
    columns = [getattr(t, name) for name in names]
    if len(set(map(len, columns))) > 1:
        given = ", ".join(f"{name} {column}" for name, column in zip(names, columns, strict=True))
        raise ValueError(f"there must be one of each for every size, not {given}")
    return list(zip(*columns, strict=True))
