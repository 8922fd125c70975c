"""What the trainer asks of a method."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Method(nn.Module):
    """An encoder, and a loss over embeddings of several views.

    The two halves stand apart so that a trainer may embed a large batch in chunks and still take
    the loss, and its exact gradient, over the whole batch.
    """

    encoder: nn.Module

    def embed(self, *views: Tensor) -> Sequence[Tensor]:
        """From V views, [N, C, H, W] each, to V embeddings, [N, D] each: rows independent."""
        raise NotImplementedError

    def loss(self, *embeddings: Tensor) -> Tensor:
        """From V embeddings of the whole batch, [N, D] each, to a scalar."""
        raise NotImplementedError

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of a batch of views."""
        return self.loss(*self.embed(*views))
