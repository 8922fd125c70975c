"""Inputs that every backend must get right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

# Backends of a test that is worth running with every instruction set of the native kernels.
WITH_ISAS = [pytest.param("native", marks=pytest.mark.instruction_sets), "reference"]

# N samples, D features: one row, primes, odd sizes around the kernels' blocks, wide and narrow.
SHAPES = [(1, 8), (2, 3), (3, 1), (7, 5), (24, 16), (61, 127), (97, 33), (131, 300), (30, 1024)]
TEMPERATURES = [0.005, 0.02, 0.07, 0.5, 1.0]


def independent(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Views without relation."""
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


def related(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Views as a trained encoder gives them: the positive stands out."""
    z0 = torch.randn(n, d, generator=generator)
    return z0, z0 + 0.5 * torch.randn(n, d, generator=generator)


def cone(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embeddings as an untrained encoder gives them: all in one narrow cone."""
    z0, z1 = independent(n, d, generator)
    return 3 + z0, 3 + z1


def duplicates(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the samples appear twice, and both views are the same."""
    z = torch.randn((n + 1) // 2, d, generator=generator).repeat(2, 1)[:n]
    return z, z.clone()


def opposite(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The positive is the least similar of all."""
    z = torch.randn(n, d, generator=generator)
    return z, -z + 0.1 * torch.randn(n, d, generator=generator)


def with_zero(n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A row without direction in each view."""
    z0, z1 = independent(n, d, generator)
    z0[0], z1[n // 2] = 0, 0
    return z0, z1


KINDS = {f.__name__: f for f in (independent, related, cone, duplicates, opposite, with_zero)}


def views(kind: str, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return KINDS[kind](n, d, torch.Generator().manual_seed(seed))
