"""A step of the moving average of a ResNet-50: parameters and statistics, counters copied.

The floor is the time of the bytes, each once: 12 a parameter in float32, 10 where a float32 average
follows bfloat16 weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench import peers
from bench.goals import at_least
from bench.harness import Answer, Benchmark, Case, Provider

M = 0.99
Step = Callable[[list[Tensor], list[Tensor]], None]
Dtypes = Callable[[torch.dtype], tuple[torch.dtype, torch.dtype]]  # of targets and of sources


@functools.cache
def shapes() -> list[tuple[torch.Size, bool]]:
    """Of the network's every tensor, and whether it is a float."""
    from fastssl.nn import build_encoder

    with torch.device("meta"):
        network = build_encoder("resnet50", 3)
    tensors = [*network.parameters(), *network.buffers()]
    return [(t.shape, t.is_floating_point()) for t in tensors]


def eager(targets: list[Tensor], sources: list[Tensor]) -> None:
    """One tensor after another, in place."""
    for target, source in zip(targets, sources, strict=True):
        if target.is_floating_point():
            target.mul_(M).add_(source, alpha=1 - M)
        else:
            target.copy_(source)


def out_of_place(targets: list[Tensor], sources: list[Tensor]) -> None:
    """As most code for BYOL, MoCo and DINO has it."""
    for target, source in zip(targets, sources, strict=True):
        if target.is_floating_point():
            target.data = target.data * M + (1 - M) * source.data
        else:
            target.copy_(source)


def foreach(targets: list[Tensor], sources: list[Tensor]) -> None:
    """torch's lerp, which wants one dtype: others are converted first, as timm does."""
    pairs = list(zip(targets, sources, strict=True))
    floats = [(t, s.to(t.dtype)) for t, s in pairs if t.is_floating_point()]
    torch._foreach_lerp_([t for t, _ in floats], [s for _, s in floats], 1 - M)
    for target, source in pairs:
        if not target.is_floating_point():
            target.copy_(source)


def fastssl(targets: list[Tensor], sources: list[Tensor]) -> None:
    from fastssl.ops import ema_update_

    ema_update_(targets, sources, M)


class Network(nn.Module):
    """A module of given tensors."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            if tensor.is_floating_point():
                self.register_parameter(f"w{i}", nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(f"w{i}", tensor)


def timm(case: Case) -> Step:
    ModelEmaV3 = peers._peer("timm.utils", "timm").ModelEmaV3
    kept: list[tuple[nn.Module, nn.Module]] = []

    def step(targets: list[Tensor], sources: list[Tensor]) -> None:
        if not kept:
            average = ModelEmaV3(Network(targets), decay=M)
            average.module = Network(targets)
            kept.append((average, Network(sources)))
        average, source = kept[0]
        average.update(source)

    return step


def benchmark(name: str, title: str, dtypes: Dtypes, providers: tuple[Provider, ...], goals):
    def inputs(case: Case) -> tuple[Tensor, ...]:
        generator = torch.Generator(device=case.device).manual_seed(case.seed)

        def draw(dtype: torch.dtype) -> list[Tensor]:
            return [
                (0.05 * torch.randn(shape, generator=generator, device=case.device)).to(dtype)
                if is_float
                else torch.ones(shape, dtype=torch.long, device=case.device)
                for shape, is_float in shapes()[: case.rows]
            ]

        target, source = dtypes(case.torch_dtype)
        return (*draw(target), *draw(source))

    def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
        wide = [t.double() if t.is_floating_point() else t for t in tensors]
        return Answer(stepped(out_of_place)(*wide), ())

    def traffic(case: Case) -> float:
        target, source = (dtype.itemsize for dtype in dtypes(case.torch_dtype))
        sizes = [shape.numel() for shape, is_float in shapes()[: case.rows] if is_float]
        return (2.0 * target + source) * sum(sizes)

    return Benchmark(
        name=name,
        title=title,
        inputs=inputs,
        truth=answer,
        providers=providers,
        flops=lambda case: 0.0,
        bytes=traffic,
        rows=(318,),
        goals=goals,
    )


def stepped(step: Step) -> Callable[..., Tensor]:
    """The step on copies of the inputs, then a number that knows of every tensor's every element;
    later calls go on from there."""
    own: list[list[Tensor]] = []

    def run(*tensors: Tensor) -> Tensor:
        first = not own
        if first:
            half = len(tensors) // 2
            own.extend([t.clone() for t in part] for part in (tensors[:half], tensors[half:]))
        step(*own)
        # Summing all of it would be a pass of its own.
        return summary(own[0]) if first else own[0][0].flatten()[0]

    return run


def summary(tensors: list[Tensor]) -> Tensor:
    return sum(t.double().abs().mean() * (1 + i % 7) for i, t in enumerate(tensors))


def provider(name: str, step: Step) -> Provider:
    return Provider(name, lambda case: stepped(step))


PROVIDERS = (
    provider("fastssl", fastssl),
    provider("eager", eager),
    provider("out of place", out_of_place),
    provider("foreach", foreach),
    Provider("timm", lambda case: stepped(timm(case))),
)
BENCH = benchmark(
    "ema_update",
    "ema_update: the moving average of a ResNet-50's 318 tensors, in place; no gradient",
    lambda dtype: (dtype, dtype),
    PROVIDERS,
    (
        at_least(1.4, "ratio", "eager", rows=318),
        at_least(3.5, "ratio", "out of place", rows=318),
        at_least(0.95, "ratio", "foreach", rows=318),
    ),
)
