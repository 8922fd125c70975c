"""The same with an average that follows the parameters, in the pass of the step or after it.

8 bytes a parameter more; 12 in a pass of its own.
"""

from __future__ import annotations

from bench.ops.bench_lars_step import benchmark, eager, ema_update, fastssl, foreach, lerp, then

BENCH = benchmark(
    "lars_step_ema",
    "lars_step with a moving average of the parameters of a ResNet-50, in place; no gradient",
    {
        "fastssl": fastssl,
        "fastssl in two passes": then(fastssl, ema_update),
        "eager": then(eager, lerp),
        "foreach": then(foreach, lerp),
    },
    average=True,
)
