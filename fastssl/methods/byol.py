"""BYOL: predict what an encoder that follows slowly makes of the other view."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import byol_loss
from fastssl.methods.base import Method
from fastssl.nn import MomentumEncoder, cosine_momentum, prediction_head


class BYOL(Method):
    """Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning.

    ``p = q(g(f(x)))``, ``z = g_ξ(f_ξ(x))`` of both views; ``‖p̄0 − z̄1‖² + ‖p̄1 − z̄0‖²``; then the
    target network ξ follows the online network slowly. There are no negatives.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "mlp-bn" in the paper, of widths 4096 and 256.
        dim: D.
        predictor_hidden: width inside the predictor q.
        key_momentum: τ of ``ξ ← τ·ξ + (1 − τ)·θ`` at the beginning; half a cosine brings it to 1.

    Grill et al. 2020, https://arxiv.org/abs/2006.07733
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 256,
        predictor_hidden: int = 4096,
        key_momentum: float = 0.996,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.predictor = prediction_head(dim, predictor_hidden)
        self.target_encoder = MomentumEncoder(nn.Sequential(encoder, head))
        self.first_momentum = self.key_momentum = key_momentum

    def before_step(self, progress: float, epoch: float) -> None:
        """τ at this step."""
        self.key_momentum = cosine_momentum(self.first_momentum, progress)

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """p of each view, [N, D]."""
        return tuple(self.predictor(self.head(self.encoder(x))) for x in views)

    def targets(self, *views: Tensor, chunk_size: int | None = None) -> tuple[Tensor, ...]:
        """z of each view, [N, D]."""
        return tuple(self.target_encoder(x, chunk_size) for x in views)

    def loss(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """Both predictions with the other view's target, [N, D] each; a float32 scalar."""
        return byol_loss(p0, p1, z0, z1, group=self.group)

    def after_step(self, *embeddings: Tensor) -> None:
        """f_ξ and g_ξ follow f and g."""
        self.target_encoder.follow(nn.Sequential(self.encoder, self.head), self.key_momentum)
