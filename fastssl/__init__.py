"""Self-supervised learning made cheap: streamed similarity-softmax losses, exact gradients."""

from fastssl import backends, functional
from fastssl._version import __version__
from fastssl.backends import BackendError, use_backend
from fastssl.losses import (
    CLIPLoss,
    DCLLoss,
    DCLWLoss,
    InfoNCELoss,
    MultiViewNTXentLoss,
    NTXentLoss,
    SupConLoss,
)
from fastssl.patching import patch, unpatch

__all__ = [
    "BackendError",
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "InfoNCELoss",
    "MultiViewNTXentLoss",
    "NTXentLoss",
    "SupConLoss",
    "__version__",
    "backends",
    "functional",
    "patch",
    "unpatch",
    "use_backend",
]
