"""Raw torch ops, one stem each: checks, schema, fake, autograd, dispatch."""

from fastssl.ops.augment import Packed, augment
from fastssl.ops.augment_parameters import augment_parameters
from fastssl.ops.ema_update import ema_update_
from fastssl.ops.lars_step import lars_step
from fastssl.ops.prototype_cross_entropy import prototype_cross_entropy
from fastssl.ops.prototype_linear import prototype_linear_cross_entropy
from fastssl.ops.similarity_lse import similarity_lse, similarity_lse_both
from fastssl.ops.similarity_lse_loss import similarity_lse_loss
from fastssl.ops.similarity_softplus import similarity_softplus
from fastssl.ops.similarity_topk import similarity_topk
from fastssl.ops.sinkhorn import sinkhorn, sinkhorn_columns, sinkhorn_potentials

__all__ = [
    "Packed",
    "augment",
    "augment_parameters",
    "ema_update_",
    "lars_step",
    "prototype_cross_entropy",
    "prototype_linear_cross_entropy",
    "similarity_lse",
    "similarity_lse_both",
    "similarity_lse_loss",
    "similarity_softplus",
    "similarity_topk",
    "sinkhorn",
    "sinkhorn_columns",
    "sinkhorn_potentials",
]
