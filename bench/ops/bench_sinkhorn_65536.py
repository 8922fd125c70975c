"""Sinkhorn with DINOv2's 65,536 prototypes: ``fastssl bench sinkhorn_65536``."""

from __future__ import annotations

from bench.goals import at_least
from bench.ops.bench_sinkhorn import benchmark

WHERE = {"dtype": "float32", "device": "cuda"}
BENCH = benchmark(
    "sinkhorn_65536",
    65536,
    rows=(64,),
    goals=(
        at_least(0.8, "of_floor", "fastssl", rows=2048, **WHERE),
        at_least(5, "ratio", "eager", rows=2048, **WHERE),
    ),
)
