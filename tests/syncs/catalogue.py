"""A call of every op: ``inputs(seed)`` are tensors on the CPU, ``call(*inputs)`` gives tensors.

What is done to each (captured as a CUDA graph, run under a memory checker) then covers a new op
too: tests/syncs/test_catalogue.py fails where one is missing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl import ops
from fastssl.augment import simclr

N, D, K, SIDE = 10, 12, 22, 12
VIEW = simclr(SIDE).views[0]


class Call(NamedTuple):
    inputs: Callable[[torch.Generator], list[Tensor]]
    call: Callable[..., tuple[Tensor, ...]]


def normal(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], list[Tensor]]:
    return lambda g: [torch.randn(shape, generator=g) for shape in shapes]


def images(g: torch.Generator) -> list[Tensor]:
    pixels = torch.randint(0, 256, (N, 3, 20, 24), generator=g, dtype=torch.uint8)
    return [pixels, simclr(SIDE).parameters(pixels, samples(g), 1)[0]]


def samples(g: torch.Generator) -> Tensor:
    return torch.randint(0, 1 << 40, (N,), generator=g)


def augment(pixels: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    return (ops.augment(pixels, parameters, VIEW.shape, taps=VIEW.blur_taps),)


def augment_parameters(sizes: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
    return (ops.augment_parameters(sizes, numbers, 3, 0, VIEW.shape, VIEW.chances),)


def ema_update(target: Tensor, source: Tensor, momentum: Tensor) -> tuple[Tensor, ...]:
    ops.ema_update_([target], [source], momentum)
    return (target,)


def lars_step(
    parameter: Tensor, gradient: Tensor, velocity: Tensor, average: Tensor, rate: Tensor
) -> tuple[Tensor, ...]:
    ops.lars_step(
        [parameter], [gradient], [velocity], rate,
        momentum=0.9, weight_decay=1e-2, averages=[average], ema_momentum=0.99,
    )  # fmt: skip
    return parameter, velocity, average


def learning(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The function's results, and every input's gradient of their sum."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        results = function(*leaves)
        gradients = torch.autograd.grad(sum(x.sum() for x in results), leaves)
        return *(x.detach() for x in results), *gradients

    return call


def prototype_cross_entropy(student: Tensor) -> tuple[Tensor, ...]:
    s, t = student.chunk(2), [x.detach() for x in student.roll(1, 1).chunk(2)]
    return (ops.prototype_cross_entropy(s, t, own=(0, 1)),)


def similarity_lse(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    own = ops.similarity_lse(x, None, scale, normalize=True, self_offset=0, pair_offset=N // 2)
    frozen = ops.similarity_lse(x, y.detach(), 2.0, normalize=True)
    return *own, *frozen, *ops.similarity_lse_both(x, y, scale)


def similarity_softplus(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return ops.similarity_softplus(x, y, scale, -scale, normalize=True, pair_offset=1)


def scalar(low: float) -> Callable[[torch.Generator], list[Tensor]]:
    return lambda g: [low + 0.1 * torch.rand((), generator=g)]


def together(*parts: Callable[[torch.Generator], list[Tensor]]):
    return lambda g: [x for part in parts for x in part(g)]


OPS = {
    "augment": Call(images, augment),
    "augment_parameters": Call(
        lambda g: [torch.randint(8, 90, (N, 2), generator=g), samples(g)], augment_parameters
    ),
    "ema_update": Call(together(normal((K, D), (K, D)), scalar(0.8)), ema_update),
    "lars_step": Call(together(normal(*[(K, D)] * 4), scalar(0.1)), lars_step),
    "prototype_cross_entropy": Call(normal((2 * N, K)), learning(prototype_cross_entropy)),
    "similarity_lse": Call(
        together(normal((N, D), (K, D)), scalar(2.0)), learning(similarity_lse)
    ),
    "similarity_softplus": Call(
        together(normal((N, D), (K, D)), scalar(2.0)), learning(similarity_softplus)
    ),
    "similarity_topk": Call(
        normal((N, D), (K, D)), lambda x, y: ops.similarity_topk(x, y, 3, normalize=True)
    ),
    "sinkhorn": Call(
        lambda g: [F.normalize(x) for x in normal((N, K))(g)],
        lambda x: (ops.sinkhorn(x, 0.05, 3), *ops.sinkhorn_potentials(x, 0.05, 3)),
    ),
}  # fmt: skip


def inputs(name: str, seed: int, device: str = "cpu") -> list[Tensor]:
    """The op's inputs, other numbers for another seed."""
    made = OPS[name].inputs(torch.Generator().manual_seed(seed))
    return [x.to(device) for x in made]
