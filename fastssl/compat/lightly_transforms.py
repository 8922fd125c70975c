"""``lightly.transforms``, as of lightly 1.6, each view in one pass over the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastssl.augment import View
from fastssl.compat.lightly_crops import (
    DINOTransform,
    DINOViewTransform,
    IBOTTransform,
    IBOTViewTransform,
    MSNTransform,
    MSNViewTransform,
    SMoGTransform,
    SmoGViewTransform,
    SwaVTransform,
)
from fastssl.compat.lightly_views import (
    IMAGENET_NORMALIZE,
    Degrees,
    Normalize,
    Pair,
    Transform,
)

__all__ = [
    "AIMTransform",
    "BYOLTransform",
    "BYOLView1Transform",
    "BYOLView2Transform",
    "CAPITransform",
    "DINOTransform",
    "DINOViewTransform",
    "DenseCLTransform",
    "FastSiamTransform",
    "IBOTTransform",
    "IBOTViewTransform",
    "MAETransform",
    "MMCRTransform",
    "MSNTransform",
    "MSNViewTransform",
    "MoCoV1Transform",
    "MoCoV2Transform",
    "SMoGTransform",
    "SimCLRTransform",
    "SimCLRViewTransform",
    "SimSiamTransform",
    "SimSiamViewTransform",
    "SmoGViewTransform",
    "SwaVTransform",
    "TiCoTransform",
    "TiCoView1Transform",
    "TiCoView2Transform",
    "VICRegTransform",
    "VICRegViewTransform",
]


@dataclass
class SimCLRTransform(Transform):
    """lightly's ``SimCLRTransform``: two views; see :class:`Transform` for what differs."""

    input_size: int = 224
    cj_prob: float = 0.8
    cj_strength: float = 1.0
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.8
    cj_hue: float = 0.2
    min_scale: float = 0.08
    random_gray_scale: float = 0.2
    gaussian_blur: float = 0.5
    sigmas: Pair = (0.1, 2)
    vf_prob: float = 0.0
    hf_prob: float = 0.5
    rr_prob: float = 0.0
    rr_degrees: Degrees = None
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        return [self._view(self.input_size, (self.min_scale, 1.0), self.gaussian_blur)] * 2


@dataclass
class _One(Transform):
    """The first of the views alone."""

    single = True

    def _views(self) -> list[View]:
        return super()._views()[:1]


@dataclass
class SimCLRViewTransform(_One, SimCLRTransform):
    """lightly's ``SimCLRViewTransform``: one view; see :class:`Transform`."""


@dataclass
class MoCoV1Transform(SimCLRTransform):
    """lightly's ``MoCoV1Transform``: two views; see :class:`Transform`."""

    cj_bright: float = 0.4
    cj_contrast: float = 0.4
    cj_sat: float = 0.4
    cj_hue: float = 0.4
    min_scale: float = 0.2
    gaussian_blur: float = 0.0


@dataclass
class MoCoV2Transform(MoCoV1Transform):
    """lightly's ``MoCoV2Transform``: two views; see :class:`Transform`."""

    cj_hue: float = 0.1
    gaussian_blur: float = 0.5


@dataclass
class DenseCLTransform(MoCoV2Transform):
    """lightly's ``DenseCLTransform``: MoCo v2's."""


@dataclass
class SimSiamTransform(MoCoV2Transform):
    """lightly's ``SimSiamTransform``: two views; see :class:`Transform`."""


@dataclass
class SimSiamViewTransform(_One, SimSiamTransform):
    """lightly's ``SimSiamViewTransform``: one view; see :class:`Transform`."""


@dataclass
class _Several:
    num_views: int = 4


@dataclass
class FastSiamTransform(SimSiamTransform, _Several):  # whose argument stands first
    """lightly's ``FastSiamTransform``: ``num_views`` views; see :class:`Transform`."""

    def _views(self) -> list[View]:
        return super()._views()[:1] * self.num_views


@dataclass
class BYOLView1Transform(Transform):
    """lightly's ``BYOLView1Transform``: one view; see :class:`Transform`."""

    input_size: int = 224
    cj_prob: float = 0.8
    cj_strength: float = 1.0
    cj_bright: float = 0.4
    cj_contrast: float = 0.4
    cj_sat: float = 0.2
    cj_hue: float = 0.1
    min_scale: float = 0.08
    random_gray_scale: float = 0.2
    gaussian_blur: float = 1.0
    solarization_prob: float = 0.0
    sigmas: Pair = (0.1, 2)
    vf_prob: float = 0.0
    hf_prob: float = 0.5
    rr_prob: float = 0.0
    rr_degrees: Degrees = None
    normalize: Normalize = IMAGENET_NORMALIZE
    single = True

    def _views(self) -> list[View]:
        scale = (self.min_scale, 1.0)
        return [self._view(self.input_size, scale, self.gaussian_blur, self.solarization_prob)]


@dataclass
class BYOLView2Transform(BYOLView1Transform):
    """lightly's ``BYOLView2Transform``: one view; see :class:`Transform`."""

    gaussian_blur: float = 0.1
    solarization_prob: float = 0.2


class BYOLTransform:
    """lightly's ``BYOLTransform``: the views of two transforms, which may be any callables; without
    them, those of :class:`BYOLView1Transform` and :class:`BYOLView2Transform`."""

    def __init__(
        self,
        view_1_transform: Callable[[Any], Any] | None = None,
        view_2_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        first, second = view_1_transform or BYOLView1Transform(), view_2_transform
        self.transforms = [first, second or BYOLView2Transform()]

    def __call__(self, image: Any) -> list[Any]:
        """A list of what each makes of one image."""
        return [transform(image) for transform in self.transforms]


class TiCoTransform(BYOLTransform):
    """lightly's ``TiCoTransform``: BYOL's."""


class TiCoView1Transform(BYOLView1Transform):
    """lightly's ``TiCoView1Transform``: BYOL's."""


class TiCoView2Transform(BYOLView2Transform):
    """lightly's ``TiCoView2Transform``: BYOL's."""


@dataclass
class _K:
    k: int = 8


@dataclass
class MMCRTransform(BYOLView1Transform, _K):  # whose argument stands first
    """lightly's ``MMCRTransform``: ``k`` views; see :class:`Transform`."""

    single = False

    def _views(self) -> list[View]:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")
        return super()._views() * self.k


@dataclass
class VICRegTransform(Transform):
    """lightly's ``VICRegTransform``: two views, blurred before they are solarized; see
    :class:`Transform`."""

    input_size: int = 224
    cj_prob: float = 0.8
    cj_strength: float = 0.5
    cj_bright: float = 0.8
    cj_contrast: float = 0.8
    cj_sat: float = 0.4
    cj_hue: float = 0.2
    min_scale: float = 0.08
    random_gray_scale: float = 0.2
    solarize_prob: float = 0.1
    gaussian_blur: float = 0.5
    sigmas: Pair = (0.1, 2)
    vf_prob: float = 0.0
    hf_prob: float = 0.5
    rr_prob: float = 0.0
    rr_degrees: Degrees = None
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        scale = (self.min_scale, 1.0)
        return [self._view(self.input_size, scale, self.gaussian_blur, self.solarize_prob)] * 2


@dataclass
class VICRegViewTransform(_One, VICRegTransform):
    """lightly's ``VICRegViewTransform``: one view; see :class:`Transform`."""

    sigmas: Pair = (0.2, 2)


@dataclass
class MAETransform(Transform):
    """lightly's ``MAETransform``: a list of one view, resized bilinearly; see
    :class:`Transform`."""

    input_size: int | tuple[int, int] = 224
    min_scale: float = 0.2
    normalize: Normalize = IMAGENET_NORMALIZE

    def _views(self) -> list[View]:
        return [self._view(self.input_size, (self.min_scale, 1.0))]


@dataclass
class AIMTransform(MAETransform):
    """lightly's ``AIMTransform``: as MAE's, larger crops."""

    min_scale: float = 0.4


@dataclass
class CAPITransform(MAETransform):
    """lightly's ``CAPITransform``: as MAE's, larger crops."""

    min_scale: float = 0.6
