"""Losses as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fastssl.functional import nt_xent


class NTXentLoss(nn.Module):
    """NT-Xent with lightly's call: ``NTXentLoss(temperature=0.5)(out0, out1)``.

    See :func:`fastssl.functional.nt_xent` for the formula, shapes, dtypes and errors.

    Args:
        temperature: positive float.
        memory_bank_size: only 0 for now.
        gather_distributed: only False for now.

    Raises:
        NotImplementedError: a memory bank or gathering over ranks is asked for.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        if memory_bank_size != 0:
            raise NotImplementedError(
                f"memory_bank_size={memory_bank_size}: memory banks are not there yet; "
                "use memory_bank_size=0"
            )
        if gather_distributed:
            raise NotImplementedError(
                "gather_distributed=True: the loss over all ranks is not there yet; "
                "use gather_distributed=False (a loss for each rank's own batch)"
            )
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss over both views; out0, out1 of shape [N, D]; a float32 scalar."""
        return nt_xent(out0, out1, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
