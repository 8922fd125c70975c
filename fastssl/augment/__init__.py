"""Views of whole batches of images: ``views = simclr()(images, indices, seed)``."""

from fastssl.augment.drop_in import Augment, Collate, Numbered, Sample
from fastssl.augment.recipes import (
    Recipe,
    View,
    byol,
    dino,
    dinov2,
    moco_v1,
    moco_v2,
    simclr,
    swav,
)
from fastssl.ops.augment import Packed
from fastssl.reference.augment_parameters import Column

__all__ = [
    "Augment",
    "Collate",
    "Column",
    "Numbered",
    "Packed",
    "Recipe",
    "Sample",
    "View",
    "byol",
    "dino",
    "dinov2",
    "moco_v1",
    "moco_v2",
    "simclr",
    "swav",
]
