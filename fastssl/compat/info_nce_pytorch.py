"""info-nce-pytorch (``import info_nce``), as of version 0.1.4."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastssl import functional
from fastssl.functional.common import Reduction

__all__ = ["InfoNCE", "info_nce"]

NegativeMode = Literal["paired", "unpaired"]


class InfoNCE(nn.Module):
    """``InfoNCE(temperature=0.1)(query, positive_key, negative_keys)``; see :func:`info_nce`."""

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        negative_mode: NegativeMode = "unpaired",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction = reduction
        self.negative_mode = negative_mode

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        """As :func:`info_nce`."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            self.reduction,
            self.negative_mode,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, reduction={self.reduction!r}, "
            f"negative_mode={self.negative_mode!r}"
        )


def info_nce(
    query: Tensor,  # [N, D]
    positive_key: Tensor,  # [N, D]
    negative_keys: Tensor | None = None,  # [K, D] or [N, K, D]
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    negative_mode: NegativeMode = "unpaired",
) -> Tensor:
    """InfoNCE; see :func:`fastssl.functional.info_nce`.

    Args:
        query, positive_key: shape [N, D], not normalised; row i of both belongs together.
        negative_keys: shape [K, D] ("unpaired") or [N, K, D] ("paired"); None: the other queries'
            positive keys.
        temperature: positive float.
        reduction: "mean", "sum" or "none".
        negative_mode: whether each query has negatives of its own; without negative_keys it does
            not matter.

    Returns:
        A float32 scalar (float64 for float64 inputs), or [N].

    Raises:
        ValueError: negative_keys have another number of dimensions than negative_mode says, or an
            argument is none that the loss takes.
    """
    if negative_keys is not None:
        dims = {"unpaired": 2, "paired": 3}
        if negative_mode not in dims:
            raise ValueError(f'negative_mode must be "paired" or "unpaired", not {negative_mode!r}')
        if negative_keys.dim() != dims[negative_mode]:
            raise ValueError(
                f"negative_keys must have {dims[negative_mode]} dimensions with "
                f"negative_mode={negative_mode!r}, not {negative_keys.dim()}"
            )
    return functional.info_nce(query, positive_key, negative_keys, temperature, reduction=reduction)
