"""``lightly.models.modules.memory_bank``, as of lightly 1.6."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.distributed import agree


class MemoryBankModule(nn.Module):
    """The last K embeddings: ``MemoryBankModule(size=(K, D))(output, update=True)``.

    As in lightly the bank is not in the ``state_dict``, a batch that passes its end loses the rows
    beyond, and embeddings enter as they are, not normalised. Nothing waits for the device.

    Args:
        size: (K, D), rows and features, at first random unit vectors; 0: no bank.
        gather_distributed: the embeddings of all ranks enter, in the order of the ranks.
        feature_dim_first: the bank is given as [D, K], else as [K, D].

    The buffers are ``bank`` [K, D], float32, and ``bank_ptr`` [1], the row that is next.

    Raises:
        ValueError: size is no such pair.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0):
            raise ValueError(f"a memory bank's size must be (K, D), or 0 for none, not {size}")
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        rows = F.normalize(torch.randn(self.size), dim=-1)
        self.register_buffer("bank", rows, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and a copy of the bank as it was before (None where there is no bank).

        Args:
            output: embeddings, shape [N, D].
            labels: not looked at.
            update: the embeddings enter the bank.
        """
        if not len(self.bank):
            return output, None
        bank = self.bank.clone()
        if update:
            self.enqueue(output)
        return output, bank.T if self.feature_dim_first else bank

    @torch.no_grad()
    def enqueue(self, batch: Tensor) -> None:
        """Put rows [N, D] at the pointer; what passes the end is dropped, and the next batch begins
        at the top."""
        group = self.gather_distributed
        batch = agree(group, False, lambda batch: None, batch=batch).gather(batch)
        size, count = len(self.bank), len(batch)
        batch = batch[:size].to(self.bank)
        places = self.bank_ptr + torch.arange(len(batch), device=batch.device)
        inside = places < size
        places = places % size  # all different; those beyond the end keep what they hold
        kept = torch.where(inside[:, None], batch, self.bank[places])
        self.bank.index_copy_(0, places, kept)
        self.bank_ptr.copy_(torch.where(self.bank_ptr + count >= size, 0, self.bank_ptr + count))

    def extra_repr(self) -> str:
        return f"size={self.size}"
