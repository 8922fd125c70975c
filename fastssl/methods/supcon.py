"""SupCon: images of a class attract."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastssl.functional import sup_con
from fastssl.methods.base import Method


class SupCon(Method):
    """Supervised Contrastive Learning.

    ``z = g(f(x))`` of both views; each z should be like all views of all images of its class.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "mlp" in the paper.
        temperature: positive.
        base_temperature: the loss is multiplied by temperature / base_temperature; None: by 1.

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362
    """

    needs: ClassVar[tuple[str, ...]] = ("labels",)

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        temperature: float = 0.1,
        base_temperature: float | None = 0.07,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.temperature = temperature
        self.base_temperature = base_temperature

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of every view, [N, D] each, in one pass."""
        return self.head(self.encoder(torch.cat(views))).chunk(len(views))

    def loss(self, *embeddings: Tensor, labels: Tensor) -> Tensor:
        """SupCon of V embeddings, [N, D] each; labels int64 [N]; a float32 scalar."""
        features = torch.stack(embeddings, dim=1)  # [N, V, D]
        return sup_con(
            features,
            labels,
            self.temperature,
            self.base_temperature,
            normalize=True,
            **self.over,
        )
