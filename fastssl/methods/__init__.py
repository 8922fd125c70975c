"""Methods: each a class whose parts read like its paper."""

from fastssl.methods.base import Method
from fastssl.methods.deepcluster import DeepCluster
from fastssl.methods.dino import DINO
from fastssl.methods.end_to_end import EndToEnd
from fastssl.methods.moco import MoCo
from fastssl.methods.moco_v3 import MoCoV3
from fastssl.methods.nnclr import NNCLR
from fastssl.methods.npid import NPID
from fastssl.methods.simclr import SimCLR
from fastssl.methods.supcon import SupCon
from fastssl.methods.swav import SwAV

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
}

__all__ = [
    "DINO",
    "METHODS",
    "NNCLR",
    "NPID",
    "DeepCluster",
    "EndToEnd",
    "Method",
    "MoCo",
    "MoCoV3",
    "SimCLR",
    "SupCon",
    "SwAV",
]
