"""A step of LARS on a ResNet-50, as SimCLR takes it: biases and norms neither adapted nor decayed.

The floor is the time of the bytes: norms read parameters and gradients (8 a parameter), the update
reads both and the velocity and writes two of them (20); the excluded ones go without norms. What
stays in a cache between the two is read from memory once: so a floor can be passed, to 20 in all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.goals import at_least
from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled

LR, MOMENTUM, DECAY, TRUST, M = 1.0, 0.9, 1e-4, 1e-3, 0.99  # at a rate of 1 all orders are one
Step = Callable[..., None]  # of parameters, gradients, velocities, whether to adapt (and averages)


@functools.cache
def shapes() -> list[torch.Size]:
    from fastssl.nn import build_encoder

    with torch.device("meta"):
        return [p.shape for p in build_encoder("resnet50", 3).parameters()]


def eager(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], adapt: bool) -> None:
    """One parameter after another, as fastssl had it before the op, and much code still has."""
    for w, g, v in zip(params, grads, velocities, strict=True):
        d = g + (DECAY if adapt else 0.0) * w
        if adapt:
            size, length = w.norm(), d.norm()
            d = d * torch.where((size > 0) & (length > 0), TRUST * size / length, 1.0)
        v.mul_(MOMENTUM).add_(d)
        w.sub_(LR * v)


@functools.cache
def compiler() -> Step:
    return compiled(eager)


def compiled_eager(*lists) -> None:
    compiler()(*lists)  # more than a minute at first


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
    params: list[Tensor],
    grads: list[Tensor],
    velocities: list[Tensor],
    adapt: bool,
    averages: Sequence[Tensor] = (),
) -> None:
    from fastssl.ops import lars_step

    lars_step(
        params,
        grads,
        velocities,
        LR,
        momentum=MOMENTUM,
        weight_decay=DECAY if adapt else 0.0,
        trust_coefficient=TRUST if adapt else None,
        averages=averages,
        ema_momentum=M,
    )


def then(step: Step, update: Callable[[list[Tensor], list[Tensor]], None]) -> Step:
    """The step, and then the averages in a pass of their own."""

    def both(params, grads, velocities, adapt, averages) -> None:
        step(params, grads, velocities, adapt)
        update(averages, params)

    return both


def lerp(averages: list[Tensor], params: list[Tensor]) -> None:
    torch._foreach_lerp_(averages, params, 1 - M)


def ema_update(averages: list[Tensor], params: list[Tensor]) -> None:
    from fastssl.ops import ema_update_

    ema_update_(averages, params, M)


def stepped(step: Step) -> Callable[[Case], Callable[..., Tensor]]:
    """The step on copies of the inputs; the first call gives a number that knows of every tensor,
    and later ones, which go on from there, one that costs nothing."""

    def make(case: Case) -> Callable[..., Tensor]:
        own: list[list[Tensor]] = []

        def run(*tensors: Tensor) -> Tensor:
            first = not own
            if first:
                lists = [tensors[i : i + case.rows] for i in range(0, len(tensors), case.rows)]
                own.extend([t.clone() for t in of] for of in lists)
            for adapt in (True, False):
                params, grads, velocities, *averages = (
                    [t for t in of if (t.dim() > 1) == adapt] for of in own
                )
                step(params, grads, velocities, adapt, *averages)
            return summary(own) if first else own[0][0][0, 0, 0, 0]

        return run

    return make


def summary(own: list[list[Tensor]]) -> Tensor:
    """Of velocities and averages, which are as large as their steps; each weighed differently."""
    terms = [t.double().abs().mean() for of in own[2:] for t in of]
    return torch.stack([t * (1 + i % 7) for i, t in enumerate(terms)]).sum()


def benchmark(name: str, title: str, providers: dict[str, Step], average: bool) -> Benchmark:
    def inputs(case: Case) -> tuple[Tensor, ...]:
        """The network's first ``case.rows`` parameters, their gradients, velocities, averages."""
        generator = torch.Generator(device=case.device).manual_seed(case.seed)
        return tuple(
            (size * torch.randn(s, generator=generator, device=case.device)).to(case.torch_dtype)
            for size in (0.05, 1e-3, 1e-4, *[1e-3] * average)
            for s in shapes()[: case.rows]
        )

    def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
        run = stepped(then(eager, lerp) if average else eager)(case)
        return Answer(run(*(t.double() for t in tensors)), ())

    def traffic(case: Case) -> float:
        """Bytes a parameter, in float32."""
        more = 8 * average
        return sum((20 + 8 * (len(s) > 1) + more) * s.numel() for s in shapes()[: case.rows])

    return Benchmark(
        name=name,
        title=title,
        inputs=inputs,
        truth=answer,
        providers=tuple(Provider(name, stepped(step)) for name, step in providers.items()),
        flops=lambda case: 0.0,
        bytes=traffic,
        rows=(159,),
        goals=(at_least(3, "ratio", "eager", rows=159),),
    )


BENCH = benchmark(
    "lars_step",
    "lars_step: LARS on the parameters of a ResNet-50, in place; no gradient",
    {"fastssl": fastssl, "eager": eager, "foreach": foreach, "torch.compile": compiled_eager},
    average=False,
)
