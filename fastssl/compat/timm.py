"""``timm.utils.ModelEmaV3``, as of timm 1.0."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.ops import ema_update_

__all__ = ["ModelEmaV3"]


class ModelEmaV3(nn.Module):
    """A model's moving average, all of its ``state_dict`` in one launch:
    ``ModelEmaV3(model, decay=0.9999)``, and after each step ``ema.update(model, step)``.

    As timm's, but that tied parameters move once a step, not once a name, and that a decay outside
    [0, 1] is an error. See :class:`fastssl.nn.EMA` for one with schedules and float32 averages.

    Args:
        model: copied as it is now, into the evaluation mode.
        decay: m.
        min_decay: of the warm-up.
        update_after_step: copy the model up to this step.
        use_warmup: m is ``1 − (1 + step/warmup_gamma)^−warmup_power``, between min_decay and decay.
        warmup_gamma, warmup_power: see there.
        device: of the average; None: the model's.
        dtype: of the average; None: the model's.
        stochastic_rounding: bfloat16 averages are rounded up or down at random, so that small steps
            add up in expectation. The random numbers are not timm's.
        stochastic_rounding_seed: of a generator that only this uses.
        foreach: ignored: there is one launch in any case.
        exclude_buffers: copy buffers.

    Attributes:
        module: the averaged model.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval().to(device=device, dtype=dtype)
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_warmup, self.warmup_gamma = use_warmup, warmup_gamma
        self.warmup_power, self.foreach = warmup_power, foreach
        self.device, self.dtype = device, dtype
        self.stochastic_rounding = stochastic_rounding
        self.stochastic_rounding_seed = stochastic_rounding_seed
        self.exclude_buffers = exclude_buffers
        where = next(self.module.parameters()).device
        self._sr_generator = torch.Generator(where).manual_seed(stochastic_rounding_seed)

    def get_decay(self, step: int | None = None) -> float:
        """m at a step, from 0; None: ``decay``."""
        if step is None:
            return self.decay
        step = max(0, step - self.update_after_step - 1)
        if step <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        decay = 1 - (1 + step / self.warmup_gamma) ** -self.warmup_power
        return max(min(decay, self.decay), self.min_decay)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Take a step towards the model, by the decay of ``step``."""
        decay = self.get_decay(step)
        if self.exclude_buffers:
            self.apply_update_no_buffers_(model, decay)
        else:
            self.apply_update_(model, decay)

    @torch.no_grad()
    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Parameters and floating-point buffers follow, others are copied."""
        self._follow(_state(self.module), _state(model), decay)

    @torch.no_grad()
    def apply_update_no_buffers_(self, model: nn.Module, decay: float) -> None:
        """Parameters follow, buffers are copied."""
        self._follow(self.module.parameters(), model.parameters(), decay)
        self._follow(self.module.buffers(), model.buffers(), 0.0)

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Become a copy of the model."""
        self._follow(_state(self.module), _state(model), 0.0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def _follow(self, averages: Iterable[Tensor], tensors: Iterable[Tensor], decay: float) -> None:
        plain: list[tuple[Tensor, Tensor]] = []
        at_random: list[tuple[Tensor, Tensor]] = []
        pairs = {id(t): (t, s.to(t.device)) for t, s in zip(averages, tensors, strict=True)}
        for pair in pairs.values():
            rounded = self.stochastic_rounding and pair[0].dtype == torch.bfloat16
            (at_random if rounded and decay else plain).append(pair)
        wide = [t.float() for t, _ in at_random]
        ema_update_(
            [t for t, _ in plain] + wide, [s for _, s in plain] + [s for _, s in at_random], decay
        )
        for (average, _), exact in zip(at_random, wide, strict=True):
            bits = exact.view(torch.int32)
            bits += torch.randint(
                1 << 16, bits.shape, dtype=torch.int32, device=bits.device,
                generator=self._sr_generator,
            )  # fmt: skip
            bits &= -(1 << 16)  # what is left is a bfloat16
            average.copy_(exact)


def _state(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict(keep_vars=True).values())
