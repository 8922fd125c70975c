"""Losses as modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from fastssl.distributed import Group
from fastssl.functional import (
    clip_loss,
    dcl,
    dclw,
    info_nce,
    multi_view_nt_xent,
    nnclr,
    nt_xent,
    siglip_loss,
    sup_con,
)
from fastssl.functional.common import Reduction
from fastssl.nn.memory import MemoryQueue


class _Loss(nn.Module):
    """A loss over the batch of this process, or of a group of ranks."""

    def __init__(self, group: Group, ring: bool) -> None:
        super().__init__()
        self.over: dict[str, Any] = {"group": group, "ring": ring}


class NTXentLoss(_Loss):
    """NT-Xent with lightly's call: ``NTXentLoss(temperature=0.5)(out0, out1)``.

    See :func:`fastssl.functional.nt_xent` for the formula, shapes, dtypes and errors. With a memory
    bank it is MoCo's loss, :func:`fastssl.functional.info_nce` of the queries ``out0``, their keys
    ``out1`` and the K keys before; then ``out1`` enter the bank, unless ``out0`` needs no gradient,
    as in validation. The bank is a :class:`fastssl.nn.MemoryQueue`: it is in the ``state_dict``.

    Args:
        temperature: positive float.
        memory_bank_size: (K, D) of the memory bank; 0: none.
        gather_distributed: the loss over the batch of all ranks, ``group=True`` of the function;
            their keys enter the memory bank of each.
        ring: as of the function.

    Raises:
        ValueError: memory_bank_size is no such pair.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        ring: bool = False,
    ) -> None:
        super().__init__(gather_distributed, ring)
        self.temperature = temperature
        self.memory_bank = None
        if memory_bank_size != 0:
            if isinstance(memory_bank_size, int) or len(memory_bank_size) != 2:
                raise ValueError(f"memory_bank_size must be (K, D) or 0, not {memory_bank_size}")
            self.memory_bank = MemoryQueue(*memory_bank_size)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss over both views, or with a memory bank over out0; out0, out1 of shape
        [N, D]; a float32 scalar."""
        if self.memory_bank is None:
            return nt_xent(out0, out1, self.temperature, **self.over)
        negatives = self.memory_bank.rows.to(out0.dtype)
        loss = info_nce(out0, out1, negatives, self.temperature, **self.over)
        if out0.requires_grad:
            self.memory_bank.enqueue(out1, group=self.over["group"])
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class InfoNCELoss(_Loss):
    """InfoNCE: ``InfoNCELoss(temperature=0.1)(query, positive_key, negative_keys)``.

    See :func:`fastssl.functional.info_nce` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        reduction: "mean", "sum" or "none".
        symmetric: the mean of both directions; only with negatives from the batch.
        group, ring: as of the function.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        symmetric: bool = False,
        *,
        group: Group = None,
        ring: bool = False,
    ) -> None:
        super().__init__(group, ring)
        self.temperature, self.reduction, self.symmetric = temperature, reduction, symmetric

    def forward(
        self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None
    ) -> Tensor:
        """query, positive_key of shape [N, D]; negative_keys: None, [K, D] or [N, K, D]."""
        return info_nce(
            query,
            positive_key,
            negative_keys,
            self.temperature,
            symmetric=self.symmetric,
            reduction=self.reduction,
            **self.over,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, reduction={self.reduction!r}, "
            f"symmetric={self.symmetric}"
        )


class _ImageTextLoss(_Loss):
    loss: Callable[..., Tensor]

    def __init__(self, *, group: Group = None, ring: bool = False) -> None:
        super().__init__(group, ring)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The mean over pairs; features of shape [N, D], normalised."""
        return self.loss(
            image_features, text_features, logit_scale, logit_bias=logit_bias, **self.over
        )


class CLIPLoss(_ImageTextLoss):
    """CLIP's loss with open_clip's call: ``CLIPLoss()(image_features, text_features, scale)``.

    See :func:`fastssl.functional.clip_loss` for the formula, shapes, dtypes and errors.

    Args:
        group, ring: as of the function.
    """

    loss = staticmethod(clip_loss)


class SigLIPLoss(_ImageTextLoss):
    """SigLIP's loss with open_clip's call: ``SigLIPLoss()(image_features, text_features, scale)``.

    See :func:`fastssl.functional.siglip_loss` for the formula, shapes, dtypes and errors.

    Args:
        group, ring: as of the function.
    """

    loss = staticmethod(siglip_loss)


class NNCLRLoss(_Loss):
    """Neighbours as positives: ``NNCLRLoss(temperature=0.1)(prediction, projection, queue)``.

    See :func:`fastssl.functional.nnclr` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        group, ring: as of the function.
    """

    def __init__(
        self, temperature: float = 0.1, *, group: Group = None, ring: bool = False
    ) -> None:
        super().__init__(group, ring)
        self.temperature = temperature

    def forward(self, prediction: Tensor, projection: Tensor, queue: Tensor) -> Tensor:
        """The mean over samples; prediction and projection of shape [N, D], queue of [K, D]."""
        return nnclr(prediction, projection, queue, self.temperature, **self.over)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class SupConLoss(_Loss):
    """SupCon with its authors' call: ``SupConLoss(temperature=0.07)(features, labels)``.

    See :func:`fastssl.functional.sup_con` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        contrast_mode: "all" or "one".
        base_temperature: the loss is multiplied by temperature / base_temperature; None: by 1. The
            authors' code has 0.07.
        group, ring: as of the function.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: Literal["all", "one"] = "all",
        base_temperature: float | None = None,
        *,
        group: Group = None,
        ring: bool = False,
    ) -> None:
        super().__init__(group, ring)
        self.temperature, self.contrast_mode = temperature, contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """features of shape [N, V, D] or [N, D], normalised; labels of shape [N]."""
        return sup_con(
            features,
            labels,
            self.temperature,
            self.base_temperature,
            contrast_mode=self.contrast_mode,
            **self.over,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, contrast_mode={self.contrast_mode!r}, "
            f"base_temperature={self.base_temperature}"
        )


class MultiViewNTXentLoss(_Loss):
    """NT-Xent over any number of views: ``MultiViewNTXentLoss(temperature=0.1)(views)``.

    See :func:`fastssl.functional.multi_view_nt_xent` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        group, ring: as of the function.
    """

    def __init__(
        self, temperature: float = 0.1, *, group: Group = None, ring: bool = False
    ) -> None:
        super().__init__(group, ring)
        self.temperature = temperature

    def forward(self, z: Tensor | Sequence[Tensor], indexes: Tensor | None = None) -> Tensor:
        """z of shape [N, V, D] or V tensors [N, D]; or [M, D] with indexes [M]."""
        return multi_view_nt_xent(z, indexes, self.temperature, **self.over)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLLoss(_Loss):
    """Decoupled contrastive learning: ``DCLLoss(temperature=0.1)(out0, out1)``.

    See :func:`fastssl.functional.dcl` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        group, ring: as of the function.
    """

    def __init__(
        self, temperature: float = 0.1, *, group: Group = None, ring: bool = False
    ) -> None:
        super().__init__(group, ring)
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean loss over both views; out0, out1 of shape [N, D]; weights of shape [N]."""
        return dcl(out0, out1, self.temperature, weights=weights, **self.over)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class DCLWLoss(_Loss):
    """Weighted decoupled contrastive learning: ``DCLWLoss(temperature=0.1)(out0, out1)``.

    See :func:`fastssl.functional.dclw` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        sigma: positive float: the smaller, the more the positives' weights differ.
        group, ring: as of the function.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        *,
        group: Group = None,
        ring: bool = False,
    ) -> None:
        super().__init__(group, ring)
        self.temperature, self.sigma = temperature, sigma

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss over both views; out0, out1 of shape [N, D]."""
        return dclw(out0, out1, self.temperature, self.sigma, **self.over)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, sigma={self.sigma}"
