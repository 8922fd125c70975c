"""``lightly.loss``, memory bank and momentum of ``lightly.models``, as of lightly 1.6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.compat.lightly_memory import MemoryBankModule
from fastssl.compat.lightly_momentum import (
    activate_requires_grad,
    deactivate_requires_grad,
    update_momentum,
)
from fastssl.compat.lightly_prototypes import DINOLoss, IBOTPatchLoss, KoLeoLoss, SwaVLoss
from fastssl.compat.lightly_regression import BarlowTwinsLoss, NegativeCosineSimilarity, VICRegLoss
from fastssl.distributed import agree
from fastssl.functional import dcl, info_nce, nt_xent
from fastssl.functional.common import widened

__all__ = [
    "BarlowTwinsLoss",
    "DCLLoss",
    "DCLWLoss",
    "DINOLoss",
    "IBOTPatchLoss",
    "KoLeoLoss",
    "MACLLoss",
    "MemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SwaVLoss",
    "VICRegLoss",
    "activate_requires_grad",
    "deactivate_requires_grad",
    "update_momentum",
]


class NTXentLoss(nn.Module):
    """NT-Xent, or with a memory bank InfoNCE: ``NTXentLoss(temperature=0.5)(out0, out1)``.

    See :func:`fastssl.functional.nt_xent` and :func:`fastssl.functional.info_nce`. With a bank,
    out0 are queries, out1 their positive keys and the bank's rows the negatives; afterwards the
    rows of out1 enter the bank, unless out0 requires no grad.

    Args:
        temperature: at least 1e-8.
        memory_bank_size: (K, D), rows and features of the bank; 0: none. As in lightly the bank is
            not in the ``state_dict``, and a batch that passes its end loses the rows beyond.
        gather_distributed: without a bank, the loss over the batch of all ranks, its mean the same
            on each (lightly's is over a rank's own rows: another number, the same step); with one,
            the keys of all ranks enter it.

    Raises:
        ValueError: the temperature is too small, or the size no such pair.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss; out0, out1 of shape [N, D], not normalised; a float32 scalar."""
        bank = self.memory_bank.bank
        if not len(bank):
            return nt_xent(out0, out1, self.temperature, group=self.gather_distributed)
        loss = info_nce(out0, out1, bank.to(out0), self.temperature)
        if out0.requires_grad:
            self.memory_bank.enqueue(F.normalize(out1.detach().to(bank), dim=1))
        return loss


class DCLLoss(nn.Module):
    """Decoupled contrastive learning: ``DCLLoss(temperature=0.1)(out0, out1)``.

    See :func:`fastssl.functional.dcl`; with N = 1 the loss is 0, where lightly has −∞.

    Args:
        temperature: positive float.
        weight_fn: from the normalised out0 and out1 to a weight [N] for each positive of out0;
            called the other way around for out1. None: 1.
        gather_distributed: the loss over the batch of all ranks, as of :class:`NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss; out0, out1 of shape [N, D], not normalised; a float32 scalar."""
        over: dict[str, Any] = {"group": self.gather_distributed}
        if self.weight_fn is None:
            return dcl(out0, out1, self.temperature, **over)
        rows = dcl(out0, out1, self.temperature, reduction="none", **over)  # [2N]
        z0, z1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        weights = torch.cat([self.weight_fn(z0, z1), self.weight_fn(z1, z0)])  # [2N]
        positive = (z0 * z1).sum(dim=1).repeat(2) / self.temperature  # rows hold it once already
        rows = rows + (1 - weights) * positive
        return agree(over["group"], False, lambda rows: None, rows=rows).mean(rows)


class DCLWLoss(DCLLoss):
    """Weighted decoupled contrastive learning: ``DCLWLoss(temperature=0.1)(out0, out1)``.

    See :func:`fastssl.functional.dclw`; with gather_distributed, weights are those among a rank's
    own positives.

    Args:
        temperature: positive float.
        sigma: positive float: the smaller, the more the positives' weights differ.
        gather_distributed: the loss over the batch of all ranks, as of :class:`NTXentLoss`.
    """

    def __init__(
        self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False
    ) -> None:
        weight_fn = partial(negative_mises_fisher_weights, sigma=sigma)
        super().__init__(temperature, weight_fn, gather_distributed)
        self.sigma = sigma

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss; out0, out1 of shape [N, D], not normalised; a float32 scalar."""
        z0, z1 = (F.normalize(widened(z.detach()), dim=1) for z in (out0, out1))
        weights = negative_mises_fisher_weights(z0, z1, self.sigma)
        group = self.gather_distributed
        return dcl(out0, out1, self.temperature, weights=weights, group=group)


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """``2 − N · softmax(out0_i·out1_i / sigma)`` over the N rows, without gradient."""
    closeness = (out0.detach() * out1.detach()).sum(dim=1) / sigma  # [N]
    return 2 - len(out0) * closeness.softmax(dim=0)


class MACLLoss(nn.Module):
    """Model-aware contrastive learning: ``MACLLoss(temperature=0.1)(z0, z1)``.

    NT-Xent at ``t = temperature · (1 + α · (A − A_0))``, with A the mean cosine of the positives,
    each row's loss divided by ``1 − P + 1e-8``, with P its positive's probability. Neither t nor P
    receives a gradient.

    Args:
        temperature: at least 1e-8.
        alpha: α, in [0, 1].
        A_0: in [0, 1].

    Raises:
        ValueError: an argument outside its range.

    Huang et al. 2023, https://arxiv.org/abs/2207.07874
    """

    def __init__(self, temperature: float = 0.1, alpha: float = 0.5, A_0: float = 0.0) -> None:
        super().__init__()
        _check_temperature(temperature)
        for name, value in (("alpha", alpha), ("A_0", A_0)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {value}")
        self.temperature, self.alpha, self.A_0 = temperature, alpha, A_0

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The mean loss; z0, z1 of shape [N, D], not normalised; a float32 scalar."""
        alignment = F.cosine_similarity(widened(z0.detach()), widened(z1.detach())).mean()
        temperature = self.temperature * (1 + self.alpha * (alignment - self.A_0))
        rows = nt_xent(z0, z1, temperature, reduction="none")  # −log P, [2N]
        return (rows / (1e-8 - torch.expm1(-rows.detach()))).mean()


def _check_temperature(temperature: float) -> None:
    if not temperature >= 1e-8:
        raise ValueError(f"temperature must be at least 1e-8, not {temperature}")
