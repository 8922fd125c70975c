"""SimSiam: predict the other view, whose side is taken as given."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fastssl.functional import simsiam_loss
from fastssl.methods.base import Method
from fastssl.nn import prediction_head


class SimSiam(Method):
    """Exploring Simple Siamese Representation Learning.

    ``z = g(f(x))``, ``p = h(z)`` of both views; ``−½·cos(p0, z1) − ½·cos(p1, z0)`` without gradient
    to z: neither negatives nor a momentum encoder. The predictor's learning rate does not decay.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "simsiam" in the paper, of width 2048.
        dim: D.
        predictor_hidden: width inside the predictor h, a bottleneck: a quarter of D in the paper.

    Chen and He 2021, https://arxiv.org/abs/2011.10566
    """

    constant_lr: ClassVar[tuple[str, ...]] = ("predictor",)

    def __init__(
        self, encoder: nn.Module, head: nn.Module, *, dim: int = 2048, predictor_hidden: int = 512
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.predictor = prediction_head(dim, predictor_hidden)

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """p of each view, then z of each, [N, D]; batch norm sees the views apart."""
        z = [self.head(self.encoder(x)) for x in views]
        return *(self.predictor(of_view) for of_view in z), *z

    def loss(self, p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
        """Both predictions with the other view's z, [N, D] each; a float32 scalar."""
        return simsiam_loss(p0, p1, z0, z1, group=self.group)
