"""Recipes of views by name: what suits digits, small pictures and photographs."""

from __future__ import annotations

from dataclasses import replace

from fastssl.data.views import MultiCrop, Recipe, Views
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
SMALL = Recipe(  # SimCLR on CIFAR-10: no blur, jitter of half the strength
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    flip=0.5,
    jitter=(0.4, 0.4, 0.4, 0.1),
    jitter_p=0.8,
    grey=0.2,
    std=0.25,
)
# for photographs
PHOTO = replace(SMALL, jitter=(0.8, 0.8, 0.8, 0.2), blur=0.5)  # SimCLR on ImageNet
BYOL = replace(PHOTO, jitter=(0.4, 0.4, 0.2, 0.1))
FIRST, SECOND = replace(BYOL, views=1, blur=1.0), replace(BYOL, views=1, blur=0.1, solarize=0.2)


def _dino(large: tuple[float, float], small: tuple[float, float]) -> MultiCrop:
    """DINO's views: two large crops of one scale, eight of 96 pixels of another."""
    crops = replace(BYOL, scale=small, size=96 / 224, views=8)
    return MultiCrop((replace(FIRST, scale=large), replace(SECOND, scale=large), crops))


RECIPES: dict[str, Views] = {
    "digits": DIGITS,
    "small": SMALL,
    "photo": PHOTO,
    # of photographs, as these methods' authors have them
    "byol": MultiCrop((FIRST, SECOND)),
    "swav": MultiCrop(
        (
            replace(PHOTO, scale=(0.14, 1.0)),
            replace(PHOTO, scale=(0.05, 0.14), size=96 / 224, views=6),
        )
    ),
    "dino": _dino((0.4, 1.0), (0.05, 0.4)),
    "dino-resnet": _dino((0.14, 1.0), (0.05, 0.14)),
    "digits-crops": MultiCrop(  # two as of "digits", four of half the side
        (DIGITS, replace(DIGITS, scale=(0.2, 0.5), shift=0.0, size=0.5, views=4))
    ),
}


def build_recipe(name: str) -> Views:
    """The recipe of that name.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in RECIPES:
        raise choose("recipe of views", name, list(RECIPES))
    return RECIPES[name]


def fitted(recipe: Views, views: int, more: bool = False) -> Views:
    """The recipe for so many views, or where it makes ``more``, and more will do, as it is.

    Raises:
        UserError: it makes another number of views.
    """
    if isinstance(recipe, Recipe):
        return replace(recipe, views=views)
    if recipe.views == views or (more and recipe.views > views):
        return recipe
    least = "at least " if more else ""
    raise UserError(f"these views are {recipe.views} of an image, the method takes {least}{views}")
