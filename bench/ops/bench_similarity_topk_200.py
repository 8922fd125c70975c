"""The same with 200 neighbours, as instance discrimination has them."""

from __future__ import annotations

from bench.ops.bench_similarity_topk import benchmark

BENCH = benchmark("similarity_topk_200", 200)
