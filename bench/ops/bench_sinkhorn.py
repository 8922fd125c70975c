"""Sinkhorn over the scores of M samples with 3,000 prototypes, SwAV's: ``fastssl bench sinkhorn``.

What no method does without: the scores are read once for the first sums of the columns, once in
every iteration, and the plan is written. An exponential is taken at each reading: 4 an element.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.goals import BF16, at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled

EPSILON, ITERATIONS = 0.05, 3
STRIDE = 4099  # of the entries that are looked at: a pass over all would be timed as well

Plan = Callable[[Tensor], Tensor]


def scores(case: Case, prototypes: int) -> Tensor:
    """Cosine similarities of random directions and prototypes, [M, K]."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    x, y = (
        torch.nn.functional.normalize(
            torch.randn(rows, case.dim, generator=generator, device=case.device), dim=1
        )
        for rows in (case.rows, prototypes)
    )
    return (x @ y.T).to(case.torch_dtype)


def wide(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def swav(scores: Tensor) -> Tensor:
    """As SwAV's function does it, in float32 (bfloat16 would be wrong)."""
    q = torch.exp(wide(scores) / EPSILON).T  # [K, B]
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(dim=1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(dim=0, keepdim=True)
        q /= q.shape[1]
    q *= q.shape[1]
    return q.T


def log_domain(scores: Tensor) -> Tensor:
    """The remedy that people write against overflow."""
    logits = wide(scores) / EPSILON
    for _ in range(ITERATIONS):
        logits = logits - logits.logsumexp(0, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def fastssl(scores: Tensor) -> Tensor:
    from fastssl.functional import sinkhorn

    return sinkhorn(scores, EPSILON, ITERATIONS)


def reference(scores: Tensor) -> Tensor:
    from fastssl.reference import sinkhorn

    return sinkhorn(scores, EPSILON, ITERATIONS)[0]


def look(plan: Tensor) -> Tensor:
    """One number of some entries, each weighed by its place."""
    b, k = plan.shape
    place = torch.arange(0, b * k, STRIDE, device=plan.device)
    return (plan[place // k, place % k].double() * (1 + place % 7)).sum() * k


def benchmark(name: str, prototypes: int, **options) -> Benchmark:
    passes = ITERATIONS + 1

    def seen(plan: Plan) -> Callable[[Case], Callable[[Tensor], Tensor]]:
        return lambda case: lambda scores: look(plan(scores))

    return Benchmark(
        name=name,
        title=f"sinkhorn: {ITERATIONS} iterations, {prototypes:,} prototypes; no gradient",
        inputs=lambda case: (scores(case, prototypes),),
        truth=lambda case, tensors: Answer(look(reference(tensors[0].double())), ()),
        providers=(
            Provider("fastssl", seen(fastssl)),
            Provider("reference", seen(reference)),
            Provider("eager", seen(swav)),
            Provider("torch.compile", lambda case: seen(compiled(swav))(case)),
            Provider("log domain", seen(log_domain)),
        ),
        flops=lambda case: 0.0,
        bytes=lambda case: case.rows * prototypes * (passes * case.torch_dtype.itemsize + 4.0),
        **options,
    )


BENCH = benchmark(
    "sinkhorn",
    3000,
    rows=(256, 2048),
    memory_rows=(2048,),
    goals=(
        at_least(6, "ratio", "eager", rows=2048),
        at_least(3, "ratio", "torch.compile", rows=2048),
        at_most(0.03, "graph_ms", "fastssl", rows=2048, dtype="float32", device="cuda"),
        at_most(0.03, "graph_ms", "fastssl", rows=2048, **BF16),
    ),
)
