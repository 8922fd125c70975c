"""Views of whole batches of images: ``views = simclr()(images, indices, seed)``."""

from fastssl.augment.drop_in import Augment, Collate, Numbered, Sample
from fastssl.augment.permutations import far_permutations
from fastssl.augment.pretext import (
    Counted,
    Counting,
    Jigsaw,
    Puzzle,
    RelativePair,
    RelativePatches,
    Rotated,
    Rotation,
)
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
    "Counted",
    "Counting",
    "Jigsaw",
    "Numbered",
    "Packed",
    "Puzzle",
    "Recipe",
    "RelativePair",
    "RelativePatches",
    "Rotated",
    "Rotation",
    "Sample",
    "View",
    "byol",
    "dino",
    "dinov2",
    "far_permutations",
    "moco_v1",
    "moco_v2",
    "simclr",
    "swav",
]
