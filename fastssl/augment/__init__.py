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
from fastssl.augment.named import (
    barlow_twins,
    byol,
    digits,
    dino,
    dinov2,
    mae,
    moco_v1,
    moco_v2,
    moco_v3,
    simclr,
    simsiam,
    swav,
)
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
from fastssl.augment.recipes import Recipe, View
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
    "barlow_twins",
    "byol",
    "decode_ab",
    "digits",
    "dino",
    "dinov2",
    "far_permutations",
    "lab_to_rgb",
    "mae",
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "rgb_to_lab",
    "simclr",
    "simsiam",
    "soft_ab_labels",
    "swav",
]
