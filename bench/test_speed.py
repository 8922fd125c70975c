"""``pytest bench/``: small cases of every benchmark under pytest-benchmark."""

from __future__ import annotations

import pytest

from bench import run
from bench.command import LEFT_OUT
from bench.harness import Case, Skip, check, step

# What takes a compiler or minutes has its place in `fastssl bench`.
SLOW = {"torch.compile", "pytorch-metric-learning", "info-nce-pytorch"}
ROWS = (128, 1024)


def contestants():
    for name in run.names():
        bench = run.load(name)
        for rows in sorted({min(rows, max(bench.rows)) for rows in ROWS}):
            for provider in bench.providers:
                if provider.name not in SLOW | LEFT_OUT:
                    yield pytest.param(bench, rows, provider, id=f"{name}-{rows}-{provider.name}")


@pytest.mark.parametrize(("bench", "rows", "provider"), list(contestants()))
def test_speed(bench, rows, provider, benchmark):
    case = Case(rows, bench.dim, bench.dtype)
    inputs = bench.inputs(case)
    try:
        function = provider.function(case)
    except Skip as reason:
        pytest.skip(str(reason))
    truth = bench.truth(case, inputs)
    entry = check(case, step(function, inputs), truth, provider.differs)
    assert "wrong" not in entry, entry["wrong"]
    benchmark.group = f"{bench.name} M={rows}"
    benchmark.pedantic(step, (function, inputs), rounds=20, warmup_rounds=2)
