"""Prototypes: the last layer of SwAV and DINO."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """K vectors that rows are compared with: ``scores_nk = z_n/‖z_n‖ · c_k``.

    SwAV's c are the weights, which :meth:`normalize_` makes unit vectors again after each step.
    DINO's are the weights divided by their lengths, within the graph: a weight-normalised linear
    layer whose norms stay 1. ``nn.Sequential(projection_head("dino", F, 2048, 256),
    Prototypes(256, 65_536, weight_norm=True))`` is DINO's head.

    Scores are computed in the precision of the weights, also under autocast: losses divide their
    differences by temperatures of a few hundredths.

    Args:
        dim: D.
        count: K.
        weight_norm: divide by the lengths in the graph, as DINO does.

    Attributes:
        weight: shape [K, D].
        frozen: whether the weights are left out of the graph, as in the first epoch of either.

    Shape:
        [N, D] to [N, K].

    Caron et al. 2020, https://arxiv.org/abs/2006.09882; 2021, https://arxiv.org/abs/2104.14294
    """

    def __init__(self, dim: int, count: int, *, weight_norm: bool = False) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, count, bias=False).weight
        self.weight_norm = weight_norm
        self.frozen = False
        if not weight_norm:
            self.normalize_()

    def forward(self, z: Tensor) -> Tensor:
        weight = self.weight.detach() if self.frozen else self.weight
        with torch.autocast(z.device.type, enabled=False):
            if self.weight_norm:
                weight = F.normalize(weight, dim=1)
            return F.linear(F.normalize(z.to(weight.dtype), dim=1), weight)

    @torch.no_grad()
    def normalize_(self) -> None:
        """Make unit vectors of the weights."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        count, dim = self.weight.shape
        return f"{dim}, {count}, weight_norm={self.weight_norm}"
