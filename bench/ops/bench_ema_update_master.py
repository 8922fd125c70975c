"""The same step where a float32 average follows bfloat16 weights."""

from __future__ import annotations

import torch

from bench.goals import at_least
from bench.ops.bench_ema_update import PROVIDERS, benchmark

BENCH = benchmark(
    "ema_update_master",
    "ema_update: the float32 average of a bfloat16 ResNet-50's 318 tensors; no gradient",
    lambda dtype: (dtype, torch.bfloat16),
    PROVIDERS,
    (
        at_least(3, "ratio", "eager", rows=318),
        at_least(3, "ratio", "foreach", rows=318),
    ),
)
