"""Plain-PyTorch references: the specification of every op, written for a reader."""

from fastssl.reference.similarity_lse import similarity_lse

__all__ = ["similarity_lse"]
