"""Losses as formulas over the ops."""

from fastssl.functional.contrastive import nt_xent

__all__ = ["nt_xent"]
