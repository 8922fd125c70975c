"""augment on all of torch's threads and on one, in turns: ``fastssl bench augment_threads``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.goals import at_least
from bench.harness import Case, Provider
from bench.ops.bench_augment import WHERE, benchmark, fastssl


def on_one(case: Case) -> Callable[..., Tensor]:
    function = fastssl(case)

    def run(images: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(images)
        finally:
            torch.set_num_threads(threads)

    return run


BENCH = benchmark(
    "augment_threads",
    224,
    (32,),
    (at_least(1.8, "ratio", "on one thread", rows=32, **WHERE),),
    providers=(Provider("fastssl", fastssl), Provider("on one thread", on_one)),
)
