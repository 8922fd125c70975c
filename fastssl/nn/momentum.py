"""An encoder that follows another: the keys of MoCo, the targets of BYOL, the teacher of DINO."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """A copy of a module that follows it slowly, and is never trained itself.

    ``θ_k ← m·θ_k + (1 − m)·θ_q`` for parameters and floating-point buffers; integer buffers are
    copied. It runs without a graph.

    Args:
        source: the module; copied as it is now.

    Raises:
        TypeError: a parameter is of lower precision than float32: there, an m near 1 would round
            to no change at all. Keep float32 weights, and use autocast.

    He et al. 2020, https://arxiv.org/abs/1911.05722
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        for name, parameter in source.named_parameters():
            if parameter.is_floating_point() and torch.finfo(parameter.dtype).bits < 32:
                raise TypeError(
                    f"source: {name} is {parameter.dtype}; a moving average needs float32"
                )
        self.module = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor, chunk_size: int | None = None) -> Tensor:
        """The copy's output for x, ``chunk_size`` rows at a time (None: all), each with batch
        statistics of its own."""
        return torch.cat([self.module(rows) for rows in x.split(chunk_size or len(x))])

    @torch.no_grad()
    def follow(self, source: nn.Module, momentum: float) -> None:
        """Take a step towards the source.

        Args:
            source: the module that was copied, or one like it.
            momentum: m, in [0, 1]: 1 stays, 0 copies.

        Raises:
            ValueError: momentum lies outside [0, 1], or the source is another module.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], not {momentum}")
        mine, theirs = (dict(_tensors(module)) for module in (self.module, source))
        if [(k, t.shape) for k, t in mine.items()] != [(k, t.shape) for k, t in theirs.items()]:
            raise ValueError("source is not the module that was copied")
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        if floats:
            torch._foreach_lerp_(
                [mine[name] for name in floats], [theirs[name] for name in floats], 1 - momentum
            )
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])


def cosine_momentum(base: float, progress: float) -> float:
    """``1 − (1 − m₀)·(1 + cos(π·progress))/2``: from m₀ = ``base`` at 0 to 1 at the end.

    BYOL, Grill et al. 2020, https://arxiv.org/abs/2006.07733
    """
    return 1 - (1 - base) * (1 + math.cos(math.pi * progress)) / 2


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
