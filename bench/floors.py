"""What the machine can do at most, measured in the same run as what is compared with it."""

from __future__ import annotations

from collections.abc import Callable

import torch

# Edge of the square product that measures the matrix rate: large enough to be at the ceiling,
# small enough to take part in every round.
MATMUL_EDGE = {"cpu": 2048, "cuda": 8192}


def matmul(device: str, dtype: torch.dtype, edge: int | None = None) -> Callable[[], torch.Tensor]:
    """A square product of random data (zeros can run faster); see :func:`matmul_flops`."""
    edge = edge or MATMUL_EDGE[device]
    if device == "cpu" and dtype == torch.float16:
        dtype = torch.float32  # few processors multiply halves, and torch then takes seconds
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (torch.randn(edge, edge, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def matmul_flops(device: str, edge: int | None = None) -> float:
    return 2.0 * (edge or MATMUL_EDGE[device]) ** 3


def copy(device: str, megabytes: int) -> tuple[Callable[[], torch.Tensor], float]:
    """A device-to-device copy and the bytes it reads and writes."""
    source = torch.randn(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * source.nbytes


def update(device: str, megabytes: int = 128) -> tuple[Callable[[], torch.Tensor], float]:
    """An update in place and the bytes it reads and writes: unlike a copy's, all that a processor
    moves."""
    source, target = (torch.randn(megabytes << 18, device=device) for _ in range(2))
    return lambda: target.lerp_(source, 0.5), 3.0 * source.nbytes
