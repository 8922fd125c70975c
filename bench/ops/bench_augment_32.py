"""The same for CIFAR's images, without blur: ``fastssl bench augment_32``."""

from __future__ import annotations

from bench.goals import at_least
from bench.ops.bench_augment import CUDA_GOALS, PROVIDERS, WHERE, benchmark

BENCH = benchmark(
    "augment_32",
    32,
    (512,),
    (at_least(50, "ratio", "kornia", rows=512, **WHERE), *CUDA_GOALS),
    providers=PROVIDERS,
    threads=1,
)
