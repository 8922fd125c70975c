"""The op under multi-crop: the ten crops and two views of M samples, as DINO is trained."""

from __future__ import annotations

from torch import Tensor

from bench.goals import at_least
from bench.harness import Case, Provider
from bench.losses.bench_dino import PROVIDERS, TEMPERATURES, VIEWS, Loss, benchmark

CROPS = 10


def _fastssl(case: Case) -> Loss:
    from fastssl.ops import prototype_cross_entropy

    def function(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        rows = prototype_cross_entropy(student, teacher, center, range(VIEWS), *TEMPERATURES)
        return rows.mean() / (CROPS * VIEWS - VIEWS)

    return function


BENCH = benchmark(
    "prototype_cross_entropy",
    "prototype_cross_entropy of M samples in ten crops and two views, forward + backward",
    CROPS,
    (Provider("fastssl", _fastssl), *PROVIDERS[1:]),
    (at_least(3, "ratio", "eager", rows=64),),
)
