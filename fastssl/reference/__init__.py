"""Plain-PyTorch references: the specification of every op, written for a reader."""

from fastssl.reference.similarity_lse import (
    inverse_norms,
    similarity_lse,
    similarity_lse_both,
    unit_rows,
)

__all__ = ["inverse_norms", "similarity_lse", "similarity_lse_both", "unit_rows"]
