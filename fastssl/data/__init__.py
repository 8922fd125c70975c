"""Images, by name, and the views made of them."""

from fastssl.data.images import FileImages, Images, Split, TensorImages
from fastssl.data.random import mix, uniform
from fastssl.data.registry import SOURCES, load_data
from fastssl.data.views import RECIPES, Recipe, build_recipe

__all__ = [
    "RECIPES",
    "SOURCES",
    "FileImages",
    "Images",
    "Recipe",
    "Split",
    "TensorImages",
    "build_recipe",
    "load_data",
    "mix",
    "uniform",
]
