"""MoCo v3: keys of the batch itself, which an encoder that follows slowly makes."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.errors import UserError
from fastssl.functional import info_nce
from fastssl.methods.base import Method
from fastssl.nn import MomentumEncoder, cosine_momentum, prediction_head


class MoCoV3(Method):
    """An Empirical Study of Training Self-Supervised Vision Transformers.

    ``q = h(g(f(x)))``, ``k = g_k(f_k(x))`` of both views;
    ``2T · (InfoNCE(q0, k1) + InfoNCE(q1, k0))`` with the batch's other keys as negatives.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D].
        dim: D.
        predictor_hidden: width inside the predictor h.
        key_momentum: m at the beginning; half a cosine brings it to 1.
        temperature: T of InfoNCE, positive; 1 for ResNet-50, 0.2 for ViTs.
        freeze_patch_embedding: f's ``patch_embed`` stays as it was initialised, which keeps the
            training of ViTs stable (section 4.2 of the paper).

    Raises:
        UserError: the patch embedding is to be frozen, and f has none.

    Chen et al. 2021, https://arxiv.org/abs/2104.02057
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 256,
        predictor_hidden: int = 4096,
        key_momentum: float = 0.99,
        temperature: float = 0.2,
        freeze_patch_embedding: bool = False,
    ) -> None:
        super().__init__()
        if freeze_patch_embedding:
            if not isinstance(getattr(encoder, "patch_embed", None), nn.Module):
                raise UserError("freeze_patch_embedding: this encoder has no patch_embed")
            encoder.patch_embed.requires_grad_(False)
        self.encoder = encoder
        self.head = head
        self.predictor = prediction_head(dim, predictor_hidden)
        self.key_encoder = MomentumEncoder(nn.Sequential(encoder, head))
        self.first_momentum = self.key_momentum = key_momentum
        self.temperature = temperature

    def before_step(self, progress: float, epoch: float) -> None:
        """m at this step."""
        self.key_momentum = cosine_momentum(self.first_momentum, progress)

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """q of each view, [N, D]."""
        return tuple(self.predictor(self.head(self.encoder(x))) for x in views)

    def targets(self, *views: Tensor, chunk_size: int | None = None) -> tuple[Tensor, ...]:
        """k of each view, [N, D]."""
        return tuple(self.key_encoder(x, chunk_size) for x in views)

    def loss(self, q0: Tensor, q1: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
        """Both queries with the other view's keys, [N, D] each; a float32 scalar."""
        loss = info_nce(q0, k1, None, self.temperature, **self.over)
        loss = loss + info_nce(q1, k0, None, self.temperature, **self.over)
        return 2 * self.temperature * loss

    def after_step(self, *embeddings: Tensor) -> None:
        """f_k and g_k follow f and g."""
        self.key_encoder.follow(nn.Sequential(self.encoder, self.head), self.key_momentum)
