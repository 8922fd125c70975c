"""Recipes of views by name: what suits digits, small pictures and photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastssl import augment
from fastssl.data.views import MultiCrop, PhotoViews, Recipe, Views
from fastssl.errors import UserError, choose

DIGITS = Recipe(  # grey strokes on black: no flips, the shape is the class
    scale=(0.7, 1.4),
    ratio=(0.8, 1.25),
    shift=0.1,
    rotate=15,
    shear=15,
    bend=0.25,
    gamma=0.7,
    soften=0.8,
    noise=0.15,
    erase=1.0,
    erase_side=(0.0, 0.4),
    mean=0.3,
    std=0.35,
)
DIGITS_CROPS = MultiCrop(  # two as of "digits", four of half the side
    (DIGITS, replace(DIGITS, scale=(0.2, 0.5), shift=0.0, size=0.5, views=4))
)


def _small(side: int) -> augment.Recipe:  # SimCLR on CIFAR-10
    return augment.simclr(side, strength=0.5, blur=0.0)


def _local(side: int) -> int:
    """The small crops' side: 96 beside 224."""
    return max(1, round(side * 96 / 224))


def _dino_resnet(side: int) -> augment.Recipe:
    """DINO's views with the scales that its authors have for ResNets."""
    recipe = augment.dino(side, _local(side))
    scales = [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * (len(recipe.views) - 2)
    views = zip(recipe.views, scales, strict=True)
    return replace(recipe, views=tuple(replace(view, scale=scale) for view, scale in views))


STROKES: dict[str, Views] = {"digits": DIGITS, "digits-crops": DIGITS_CROPS}
PHOTOS: dict[str, Callable[[int], augment.Recipe]] = {  # by the side of the large views
    "small": _small,
    "photo": augment.simclr,
    # as these methods' authors have them
    "simclr": augment.simclr,
    "moco-v1": augment.moco_v1,
    "moco-v2": augment.moco_v2,
    "byol": augment.byol,
    "swav": lambda side: augment.swav(side, _local(side)),
    "dino": lambda side: augment.dino(side, _local(side)),
    "dino-resnet": _dino_resnet,
    "dinov2": lambda side: augment.dinov2(side, _local(side)),
}
RECIPES = ("digits", "small", "photo", *sorted({*STROKES, *PHOTOS} - {"digits", "small", "photo"}))


def build_recipe(name: str, side: int = 224, *, channels_last: bool = False) -> Views:
    """The recipe of that name.

    Args:
        name: one of RECIPES.
        side: of photographs' large views, in pixels; strokes' are of their images' size.
        channels_last: the memory format of photographs' views.

    Raises:
        UserError: there is no such recipe.
    """
    if name in STROKES:
        return STROKES[name]
    if name not in PHOTOS:
        raise choose("recipe of views", name, list(RECIPES))
    return PhotoViews(PHOTOS[name](side), channels_last)


def fitted(recipe: Views, views: int, more: bool = False) -> Views:
    """The recipe for so many views, or where it makes ``more``, and more will do, as it is.

    Raises:
        UserError: it makes another number of views.
    """
    if isinstance(recipe, Recipe):
        return replace(recipe, views=views)
    if isinstance(recipe, PhotoViews) and len(set(recipe.recipe.views)) == 1:  # any number
        alike = recipe.recipe.views[:1] * views
        return replace(recipe, recipe=replace(recipe.recipe, views=alike))
    if recipe.views == views or (more and recipe.views > views):
        return recipe
    least = "at least " if more else ""
    raise UserError(f"these views are {recipe.views} of an image, the method takes {least}{views}")
