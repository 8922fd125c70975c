"""Ours beside a peer, or beside its formula written out, on the same rounded inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bench.harness import Skip
from bench.peers import _peer
from tests.numerics import GRADIENT, LOSS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 3), (7, 5), (24, 16), (61, 33), (130, 64)]
TEMPERATURES = [0.02, 0.1, 1.0]
# A gradient whose terms cancel is exact to a rounding of the terms, not of what is left.
FLOOR = 1e-7


def peer(module: str, package: str) -> ModuleType:
    """A peer's module; skips the test, with the reason, where it is missing."""
    try:
        return _peer(module, package)
    except Skip as reason:
        pytest.skip(str(reason))


def agrees(mine: Callable[..., Tensor], theirs: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Value and every gradient: ours as it is, theirs in float64.

    A gradient in half precision that is the sum of several, each rounded, may also be as far off
    as theirs is in that dtype.
    """
    value, gradients = _evaluate(mine, *tensors)
    true, truths = _evaluate(theirs, *(t.double() for t in tensors))
    assert value.shape == true.shape
    error = (value.double() - true).abs().max()
    bound = 3 * LOSS * true.abs().max() + 1e-12
    assert error <= bound, f"value {true.abs().max():.3e}: {error:.1e} off"
    for i, (gradient, truth) in enumerate(zip(gradients, truths, strict=True)):
        assert torch.isfinite(gradient).all()
        info = torch.finfo(gradient.dtype)
        error = (gradient.double() - truth).norm()
        bound = GRADIENT[gradient.dtype] * truth.norm() + FLOOR * _size(tensors[i])
        bound += info.tiny * info.eps * gradient.numel() ** 0.5  # below, no number is exact
        if error > bound and info.bits < 32:
            bound = (_evaluate(theirs, *tensors)[1][i].double() - truth).norm()
        assert error <= bound, f"gradient {i} of norm {truth.norm():.2e}: {error:.1e} off"


def _evaluate(loss: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """The value, and the gradient of each tensor."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = loss(*leaves)
    upstream = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), torch.autograd.grad(value, leaves, upstream)


def _size(x: Tensor) -> float:
    """About the size of a mean loss's gradient for these rows, were there no cancellation."""
    return 1 / x.double().norm(dim=-1).mean().clamp(min=1).item() if x.dim() > 1 else 1.0


def views(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """Two views of n samples, the positives nearer than the others."""
    generator = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=generator)
    z1 = z0 + torch.randn(n, d, generator=generator)
    return z0.to(dtype), z1.to(dtype)
