"""Images, by name, and the views made of them."""

from fastssl.data.images import FileImages, Images, Split, TensorImages, ahead
from fastssl.data.random import mix, uniform
from fastssl.data.recipes import RECIPES, build_recipe, fitted
from fastssl.data.registry import SOURCES, load_data
from fastssl.data.views import MultiCrop, PhotoViews, Recipe, Views

__all__ = [
    "RECIPES",
    "SOURCES",
    "FileImages",
    "Images",
    "MultiCrop",
    "PhotoViews",
    "Recipe",
    "Split",
    "TensorImages",
    "Views",
    "ahead",
    "build_recipe",
    "fitted",
    "load_data",
    "mix",
    "uniform",
]
