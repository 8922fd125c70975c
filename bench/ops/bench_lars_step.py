"""A step of LARS on a ResNet-50, as SimCLR takes it: biases and norms neither adapted nor decayed.

The floor is the time of the bytes: norms read parameters and gradients (8 a parameter), the update
reads both and the velocity and writes two of them (20); the excluded ones go without norms. What
stays in a cache between the two is read from memory once: so a floor can be passed, to 20 in all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.goals import at_least
from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled

LR, MOMENTUM, DECAY, TRUST = 1.0, 0.9, 1e-4, 1e-3
Step = Callable[[list[Tensor], list[Tensor], list[Tensor], bool], None]


@functools.cache
def shapes() -> list[torch.Size]:
    from fastssl.nn import build_encoder

    with torch.device("meta"):
        return [p.shape for p in build_encoder("resnet50", 3).parameters()]


def inputs(case: Case) -> tuple[Tensor, ...]:
    """The network's first ``case.rows`` parameters, then their gradients, then velocities."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def draw(size: float) -> list[Tensor]:
        return [
            (size * torch.randn(s, generator=generator, device=case.device)).to(case.torch_dtype)
            for s in shapes()[: case.rows]
        ]

    return (*draw(0.05), *draw(1e-3), *draw(1e-4))


def eager(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], adapt: bool) -> None:
    """One parameter after another, as most code for torch does."""
    for w, g, v in zip(params, grads, velocities, strict=True):
        d = g
        if adapt:
            d = d + DECAY * w
            size, length = w.norm(), d.norm()
            d = d * torch.where((size > 0) & (length > 0), TRUST * size / length, 1.0)
        v.mul_(MOMENTUM).add_(d, alpha=LR)
        w.sub_(v)


def foreach(
    params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], adapt: bool
) -> None:
    if adapt:
        grads = list(torch._foreach_add(grads, params, alpha=DECAY))
        sizes = torch.stack(torch._foreach_norm(params))
        lengths = torch.stack(torch._foreach_norm(grads))
        ratios = torch.where((sizes > 0) & (lengths > 0), TRUST * sizes / lengths, 1.0)
        torch._foreach_mul_(grads, list(ratios.unbind()))
    torch._foreach_mul_(velocities, MOMENTUM)
    torch._foreach_add_(velocities, grads, alpha=LR)
    torch._foreach_sub_(params, velocities)


def fastssl(
    params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], adapt: bool
) -> None:
    from fastssl.ops import lars_step

    decay, trust = (DECAY, TRUST) if adapt else (0.0, None)
    lars_step(
        params,
        grads,
        velocities,
        LR,
        momentum=MOMENTUM,
        weight_decay=decay,
        trust_coefficient=trust,
    )


def stepped(step: Step, case: Case) -> Callable[..., Tensor]:
    """The step on copies of the inputs, then a number that knows of a layer's every element; later
    calls go on from there."""
    own: list[list[Tensor]] = []

    def run(*tensors: Tensor) -> Tensor:
        first = not own
        if first:
            third = len(tensors) // 3
            own.extend(
                [t.clone() for t in tensors[i : i + third]] for i in range(0, 3 * third, third)
            )
        for adapt in (True, False):
            step(*([t for t in of if (t.dim() > 1) == adapt] for of in own), adapt)
        # Summing all of it would be a pass of its own.
        return summary(own) if first else own[0][0][0, 0, 0, 0]

    return run


def summary(own: list[list[Tensor]]) -> Tensor:
    """How far the velocities are from none, tensor by tensor and all weighed alike."""
    return sum(v.double().abs().mean() * (1 + i % 7) for i, v in enumerate(own[2]))


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    with torch.no_grad():
        return Answer(stepped(eager, case)(*(t.double() for t in tensors)), ())


def traffic(case: Case) -> float:
    return sum((28 if len(s) > 1 else 20) * s.numel() for s in shapes()[: case.rows])


BENCH = Benchmark(
    name="lars_step",
    title="lars_step: LARS on the parameters of a ResNet-50, in place; no gradient",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", lambda case: stepped(fastssl, case)),
        Provider("eager", lambda case: stepped(eager, case)),
        Provider("foreach", lambda case: stepped(foreach, case)),
        Provider("torch.compile", lambda case: stepped(compiled(eager), case)),
    ),
    flops=lambda case: 0.0,
    bytes=traffic,
    rows=(159,),
    goals=(at_least(3, "ratio", "eager", rows=159),),
)
