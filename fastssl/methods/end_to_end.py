"""The end-to-end dictionary: a query finds its key among the batch's, and both learn."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import info_nce
from fastssl.methods.base import Method


class EndToEnd(Method):
    """The dictionary before MoCo's: the keys of the batch, with gradients to them as well.

    ``q = g(f(x_q))``, ``k = g(f(x_k))``; InfoNCE of q, its k, and the batch's other keys. The
    dictionary is as large as the batch, which chunked gradients make as large as one likes.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D].
        temperature: of InfoNCE, positive.
        symmetric: keys find their queries as well.

    He et al. 2020, figure 2a, https://arxiv.org/abs/1911.05722
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        temperature: float = 0.07,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.temperature = temperature
        self.symmetric = symmetric

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """q and k, [N, D] each; batch norm sees them apart."""
        return tuple(self.head(self.encoder(x)) for x in views)

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """InfoNCE of q and k, [N, D] each; a float32 scalar."""
        return info_nce(q, k, None, self.temperature, symmetric=self.symmetric, **self.over)
