"""What SimCLR's recipe draws for a view of each of M images of 375 × 500.

Answers are compared in a mean. The floor is the time of the bytes: 24 in and 76 out for an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.goals import at_least
from bench.harness import Answer, Benchmark, Case, Provider

SEED = 1


def inputs(case: Case) -> tuple[Tensor, ...]:
    sizes = torch.tensor([[375, 500]], device=case.device).repeat(case.rows, 1)
    return sizes, torch.arange(case.rows, device=case.device)


def score(rows: Tensor) -> Tensor:
    """The mean height of crops, as a share."""
    return rows[:, 2].double().mean() / 375


def draw(case: Case, sizes: Tensor, samples: Tensor, function: Callable[..., Tensor]) -> Tensor:
    from fastssl.augment import simclr

    view = simclr(case.dim).views[0]
    return score(function(sizes, samples, SEED, 0, view.shape, view.chances))


def fastssl(case: Case) -> Callable[..., Tensor]:
    from fastssl.ops import augment_parameters

    return lambda sizes, samples: draw(case, sizes, samples, augment_parameters)


def reference(case: Case) -> Callable[..., Tensor]:
    from fastssl.reference import augment_parameters

    return lambda sizes, samples: draw(case, sizes, samples, augment_parameters)


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    sizes, samples = (t.cpu() for t in tensors)
    return Answer(reference(case)(sizes, samples), ())


BENCH = Benchmark(
    name="augment_parameters",
    title="Parameters of a view of each of M images, views of D pixels a side; no gradient",
    inputs=inputs,
    truth=answer,
    providers=(Provider("fastssl", fastssl), Provider("reference", reference)),
    flops=lambda case: 0.0,
    bytes=lambda case: 100.0 * case.rows,
    rows=(512, 4096),
    memory_rows=(512,),
    each=("row", 1),
    goals=(at_least(4, "ratio", "reference", rows=512),),
)
