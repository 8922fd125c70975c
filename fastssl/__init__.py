"""Self-supervised learning made cheap: streamed similarity-softmax losses, exact gradients."""

from fastssl import backends, functional, nn
from fastssl._version import __version__
from fastssl.backends import BackendError, use_backend
from fastssl.losses import (
    CLIPLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCELoss,
    MultiViewNTXentLoss,
    NNCLRLoss,
    NTXentLoss,
    SigLIPLoss,
    SupConLoss,
)
from fastssl.patching import patch, unpatch
from fastssl.prototype_losses import DINOLoss, IBOTPatchLoss, KoLeoLoss, SwAVLoss
from fastssl.regression_losses import BarlowTwinsLoss, BYOLLoss, SimSiamLoss, VICRegLoss

__all__ = [
    "BYOLLoss",
    "BackendError",
    "BarlowTwinsLoss",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "InfoNCELoss",
    "KoLeoLoss",
    "MultiViewNTXentLoss",
    "NNCLRLoss",
    "NTXentLoss",
    "SigLIPLoss",
    "SimSiamLoss",
    "SupConLoss",
    "SwAVLoss",
    "VICRegLoss",
    "__version__",
    "backends",
    "functional",
    "nn",
    "patch",
    "unpatch",
    "use_backend",
]
