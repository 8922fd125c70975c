"""RankMe: how many dimensions the features use. It needs no labels."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-7


def rank_me(features: Tensor, *, eps: float = EPS) -> float:
    """The effective rank of features, a label-free measure of collapse.

        exp(−Σ_k p_k log p_k),  p_k = σ_k / Σ_j σ_j + ε,  k = 1 … min(N, D)

    with σ the singular values of the features as they are, neither centred nor normalised.

    Args:
        features: floating [N, D]. It can be no more than min(N, D): give several times D rows (the
            paper: 25,600 images).
        eps: ε; 1e-7 in the paper.

    Returns:
        1 (all rows on one line) to min(N, D), up to ε; 0 where all features are 0. Computed in
        float64.

    Raises:
        ValueError: no features, or features that are not floating or not finite.

    Garrido et al. 2023, https://arxiv.org/abs/2210.02885
    """
    if features.ndim != 2 or features.numel() == 0 or not features.is_floating_point():
        raise ValueError(
            "features must be floating [N, D] with N, D >= 1, "
            f"got {features.dtype} {list(features.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError("the features hold NaN or infinity; they have no rank")
    # Not from the Gram matrix: squared, values below 1e-8 of the largest would drown in rounding.
    sigma = torch.linalg.svdvals(features.detach().to("cpu", torch.float64))
    total = sigma.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(sigma / total + eps).sum().exp().item()
