"""Methods: each a class whose forward reads like its paper."""

from fastssl.methods.base import Method
from fastssl.methods.simclr import SimCLR

__all__ = ["Method", "SimCLR"]
