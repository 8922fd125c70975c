"""Methods: each a class whose parts read like its paper."""

from fastssl.methods.barlow_twins import BarlowTwins
from fastssl.methods.base import Method
from fastssl.methods.byol import BYOL
from fastssl.methods.deepcluster import DeepCluster
from fastssl.methods.dino import DINO
from fastssl.methods.end_to_end import EndToEnd
from fastssl.methods.moco import MoCo
from fastssl.methods.moco_v3 import MoCoV3
from fastssl.methods.nnclr import NNCLR
from fastssl.methods.npid import NPID
from fastssl.methods.simclr import SimCLR
from fastssl.methods.simsiam import SimSiam
from fastssl.methods.supcon import SupCon
from fastssl.methods.swav import SwAV
from fastssl.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {  # by the names of the command line
    "simclr": SimCLR,
    "moco": MoCo,
    "moco-v3": MoCoV3,
    "npid": NPID,
    "nnclr": NNCLR,
    "supcon": SupCon,
    "end-to-end": EndToEnd,
    "swav": SwAV,
    "dino": DINO,
    "deepcluster": DeepCluster,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow-twins": BarlowTwins,
    "vicreg": VICReg,
}

__all__ = [
    "BYOL",
    "DINO",
    "METHODS",
    "NNCLR",
    "NPID",
    "BarlowTwins",
    "DeepCluster",
    "EndToEnd",
    "Method",
    "MoCo",
    "MoCoV3",
    "SimCLR",
    "SimSiam",
    "SupCon",
    "SwAV",
    "VICReg",
]
