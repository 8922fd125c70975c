"""Plain-PyTorch references: the specification of every op, written for a reader."""

from fastssl.reference.augment import augment
from fastssl.reference.augment_parameters import augment_parameters
from fastssl.reference.ema_update import ema_update
from fastssl.reference.lars_step import lars_step
from fastssl.reference.prototype_cross_entropy import prototype_cross_entropy
from fastssl.reference.similarity_lse import (
    inverse_norms,
    similarity_lse,
    similarity_lse_both,
    unit_rows,
)
from fastssl.reference.similarity_lse_loss import similarity_lse_loss
from fastssl.reference.similarity_softplus import similarity_softplus
from fastssl.reference.similarity_topk import similarity_topk
from fastssl.reference.sinkhorn import sinkhorn

__all__ = [
    "augment",
    "augment_parameters",
    "ema_update",
    "inverse_norms",
    "lars_step",
    "prototype_cross_entropy",
    "similarity_lse",
    "similarity_lse_both",
    "similarity_lse_loss",
    "similarity_softplus",
    "similarity_topk",
    "sinkhorn",
    "unit_rows",
]
