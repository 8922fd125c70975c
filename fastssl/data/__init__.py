"""Images, by name, and the views made of them."""

from fastssl.data.ahead import ahead
from fastssl.data.feed import placed, reader, resident
from fastssl.data.images import Images, Split, TensorImages
from fastssl.data.random import mix, uniform
from fastssl.data.recipes import RECIPES, build_recipe, fitted
from fastssl.data.registry import SOURCES, load_data, source_of
from fastssl.data.shelf import Reading
from fastssl.data.store import ImageStore, Unreadable
from fastssl.data.views import MultiCrop, PhotoViews, Recipe, Views

__all__ = [
    "RECIPES",
    "SOURCES",
    "ImageStore",
    "Images",
    "MultiCrop",
    "PhotoViews",
    "Reading",
    "Recipe",
    "Split",
    "TensorImages",
    "Unreadable",
    "Views",
    "ahead",
    "build_recipe",
    "fitted",
    "load_data",
    "mix",
    "placed",
    "reader",
    "resident",
    "source_of",
    "uniform",
]
