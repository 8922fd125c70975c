"""An encoder that follows another: the keys of MoCo, the targets of BYOL, the teacher of DINO."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl.nn.ema import Follower


class MomentumEncoder(Follower):
    """A copy of an encoder that follows it slowly, and is never trained itself.

    ``θ_k ← m·θ_k + (1 − m)·θ_q`` by :meth:`follow`, for parameters and floating-point buffers;
    integer buffers are copied. It runs without a graph. Weights of lower precision than float32
    have float32 averages (see :class:`fastssl.nn.ema.Follower`).

    Args:
        source: the module; copied as it is now.
        master: False: no such float32 averages.

    He et al. 2020, https://arxiv.org/abs/1911.05722
    """

    @torch.no_grad()
    def forward(self, x: Tensor, chunk_size: int | None = None) -> Tensor:
        """The copy's output for x, ``chunk_size`` rows at a time (None: all), each with batch
        statistics of its own."""
        return torch.cat([self.module(rows) for rows in x.split(chunk_size or len(x))])
