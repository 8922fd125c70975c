"""What the classes of ``fastssl.compat.lightly_transforms`` have in common."""

from __future__ import annotations

from math import ceil
from typing import Any, ClassVar

import torch

from fastssl.augment import Column, Packed, Recipe, View
from fastssl.augment.pixels import pixels


class _Moments(dict[str, list[float]]):
    """A dict that may be a dataclass's default."""

    __hash__ = object.__hash__  # type: ignore[assignment]


IMAGENET_NORMALIZE = _Moments(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
Normalize = dict[str, list[float]] | None
Degrees = float | tuple[float, float] | None
Pair = tuple[float, float]
RATIO = (3 / 4, 4 / 3)


class Transform:
    """Views of an image by a recipe: what the classes below have in common.

    Arguments, their order and their defaults are lightly's, and so is what is drawn: see each
    class of that name there. Called with an image (of Pillow, an array or a uint8 tensor) they
    return what lightly's does: a float32 tensor [C, height, width] for one view, a list of them for
    several. ``transform.recipe`` makes them of whole batches (:class:`fastssl.augment.Collate`).

    Given what is drawn, views are torchvision's on uint8 tensors, in whole numbers. So they differ
    from lightly's, which work on Pillow's images, in this: hue and grey by a few units of 255; the
    blur is a Gaussian to 5 σ, its image mirrored at the edge, where Pillow's is three means of an
    image whose edge is repeated; DINO's, iBOT's, MAE's, AIM's and CAPI's crops are resized
    bilinearly rather than bicubically; VICReg's are blurred before they are solarized. Random
    numbers come from torch's generator alone, which DataLoader seeds in every worker, and none from
    numpy's. A grey image keeps its one channel, normalised by the first numbers. Tensors must be
    uint8. Quarter turns (``rr_prob`` with ``rr_degrees=None``) there are, other angles raise.

    Raises:
        ValueError: a probability or range that is none; ``rr_degrees`` with ``rr_prob`` > 0.
    """

    recipe: Recipe
    single: ClassVar[bool] = False  # whether a call gives its one view rather than a list

    def _views(self) -> list[View]:
        raise NotImplementedError

    def __post_init__(self) -> None:
        given = vars(self)
        if given.get("rr_degrees") is not None and given["rr_prob"] > 0:
            raise ValueError(
                "rr_degrees must be None, for quarter turns, where rr_prob is not 0; other angles, "
                f"as {given['rr_degrees']}, are not among these operations"
            )
        moments = given["normalize"] or {"mean": [0.0], "std": [1.0]}
        mean, std = tuple(moments["mean"]), tuple(moments["std"])
        self.recipe = Recipe(tuple(self._views()), mean, std, quantized=True)

    def __call__(self, image: Any) -> Any:
        """The view or views of one image; TypeError or ValueError if it is none."""
        one = Packed.of([pixels(image)])
        seed = int(torch.randint(2**63 - 1, ()))
        parameters = self.recipe.parameters(one, torch.zeros(1, dtype=torch.int64), seed)
        for row in parameters:
            row[:, Column.TURNS].clamp_(max=1)  # lightly's are counter-clockwise
        views = [batch[0] for batch in self.recipe.apply(one, parameters)]
        return views[0] if self.single else views

    def _view(
        self,
        size: int | tuple[int, int],
        scale: Pair,
        blur: float = 0.0,
        solarize: float = 0.0,
        **others: float,
    ) -> View:
        """By the arguments that all have by the same names, those that a class lacks at 0; or by
        ``others`` in place of these."""
        given = vars(self) | others
        strength = given.get("cj_strength", 0.0)
        sigmas = given.get("sigmas", given.get("gaussian_blur_sigmas", (0.1, 2)))
        return View(
            size,
            scale=(scale[0], scale[1]),
            ratio=RATIO,
            flip=given.get("hf_prob", 0.5),
            flip_vertical=given.get("vf_prob", 0.0),
            turn=given.get("rr_prob", 0.0),
            jitter=given.get("cj_prob", 0.0),
            brightness=strength * given.get("cj_bright", 0.0),
            contrast=strength * given.get("cj_contrast", 0.0),
            saturation=strength * given.get("cj_sat", 0.0),
            hue=strength * given.get("cj_hue", 0.0),
            grey=given.get("random_gray_scale", 0.0),
            blur=blur,
            sigma=(sigmas[0], sigmas[1]),
            taps=2 * ceil(5 * sigmas[1]) + 1,
            solarize=solarize,
        )
