"""Views of whole batches of images: ``views = simclr()(images, indices, seed)``."""

from fastssl.augment.colours import (
    Colorization,
    Colorized,
    SplitBrain,
    SplitChannels,
    ab_labels,
    decode_ab,
    soft_ab_labels,
)
from fastssl.augment.drop_in import Augment, Collate, Numbered, Sample
from fastssl.augment.masks import BlockMask, CentreMask, Masked, MaskedPatches, PatchMask
from fastssl.augment.permutations import far_permutations
from fastssl.augment.pieces import (
    Counted,
    Counting,
    Jigsaw,
    Puzzle,
    RelativePair,
    RelativePatches,
)
from fastssl.augment.pretext import Rotated, Rotation
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
from fastssl.reference.lab import ab_bins, lab_to_rgb, rgb_to_lab

__all__ = [
    "Augment",
    "BlockMask",
    "CentreMask",
    "Collate",
    "Colorization",
    "Colorized",
    "Column",
    "Counted",
    "Counting",
    "Jigsaw",
    "Masked",
    "MaskedPatches",
    "Numbered",
    "Packed",
    "PatchMask",
    "Puzzle",
    "Recipe",
    "RelativePair",
    "RelativePatches",
    "Rotated",
    "Rotation",
    "Sample",
    "SplitBrain",
    "SplitChannels",
    "View",
    "ab_bins",
    "ab_labels",
    "byol",
    "decode_ab",
    "dino",
    "dinov2",
    "far_permutations",
    "lab_to_rgb",
    "moco_v1",
    "moco_v2",
    "rgb_to_lab",
    "simclr",
    "soft_ab_labels",
    "swav",
]
