"""Losses as formulas over the ops."""

from fastssl.functional.clustering import sinkhorn, sinkhorn_potentials
from fastssl.functional.contrastive import dcl, dclw, info_nce, nt_xent
from fastssl.functional.distillation import distillation_loss
from fastssl.functional.image_text import clip_loss
from fastssl.functional.k_means import cluster_loss, spherical_k_means
from fastssl.functional.koleo import koleo_loss
from fastssl.functional.multi_view import multi_view_nt_xent
from fastssl.functional.nearest import nnclr
from fastssl.functional.prototypes import dino_loss, ibot_patch_loss, swav_loss
from fastssl.functional.redundancy import barlow_twins_loss, vicreg_loss
from fastssl.functional.regression import (
    byol_loss,
    negative_cosine_similarity,
    simsiam_loss,
)
from fastssl.functional.sigmoid import siglip_loss
from fastssl.functional.supervised import sup_con

__all__ = [
    "barlow_twins_loss",
    "byol_loss",
    "clip_loss",
    "cluster_loss",
    "dcl",
    "dclw",
    "dino_loss",
    "distillation_loss",
    "ibot_patch_loss",
    "info_nce",
    "koleo_loss",
    "multi_view_nt_xent",
    "negative_cosine_similarity",
    "nnclr",
    "nt_xent",
    "siglip_loss",
    "simsiam_loss",
    "sinkhorn",
    "sinkhorn_potentials",
    "spherical_k_means",
    "sup_con",
    "swav_loss",
    "vicreg_loss",
]
