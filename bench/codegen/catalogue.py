"""What is compiled: every op's launches at its shipped configurations, and the goals' problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from fastssl_kernels import (
    ema_update,
    lars_step,
    prototype_cross_entropy,
    similarity_lse,
    similarity_lse_loss,
    similarity_lse_pairs,
    similarity_softplus,
    similarity_topk,
    sinkhorn,
)
from fastssl_kernels.similarity_lse_plan import Device

from bench.codegen import predict
from bench.codegen.chip import Chip
from bench.codegen.compile import Launch, record

BF16, F32 = torch.bfloat16, torch.float32


def device(chip: Chip) -> Device:
    """As the launchers know the chip."""
    family = "small" if chip.capability < 90 else "hopper" if chip.capability < 100 else "blackwell"
    return Device(family, processors=chip.processors)


def similarity(
    chip: Chip,
    m: int = 8192,
    k: int | None = None,
    d: int = 128,
    dtype: torch.dtype = BF16,
    columns: bool = False,
    mean: bool = False,
    learned: bool = False,
) -> list[Launch]:
    """NT-Xent's (no ``k``), CLIP's (``columns``) or MoCo's (``mean``), forward and backward."""
    x, lse = torch.empty(m, d, dtype=dtype), torch.empty(m, dtype=torch.float64)
    y = None if k is None else torch.empty(k, d, dtype=dtype)
    column_lse = torch.empty(k, dtype=torch.float64) if columns else None
    scale = torch.tensor(10.0) if learned else None
    symmetric = k is None
    options = (10.0, True, 0 if symmetric else None, m // 2 if symmetric else 0, symmetric)
    pairs = None
    if mean:  # MoCo's positives are no columns
        pairs, options = torch.empty_like(x), (10.0, True, None, None, False)
    made = record(
        similarity_lse, device(chip), "launch_similarity_lse_fwd",
        x, y, scale, *options, columns, mean, pairs,
    )  # fmt: skip
    if mean:
        means, needs = torch.empty(m, d), (True, False, learned)
        made += record(
            similarity_lse_pairs, device(chip), "launch_similarity_lse_pairs_bwd",
            lse, lse, x, pairs, scale, means, 10.0, True, *needs,
        )  # fmt: skip
    else:
        sums = (lse, column_lse)
        made += record(
            similarity_lse, device(chip), "launch_similarity_lse_bwd",
            lse, *sums, x, y, scale, *sums, *options, True, not symmetric, learned,
        )  # fmt: skip
    return made


def loss(chip: Chip, m: int = 8192, columns: bool = False) -> list[Launch]:
    """The mean of the rows' losses, and of the columns' where they have any."""
    pair, module = torch.empty(m, dtype=torch.float64), (similarity_lse_loss, device(chip))
    sums = (pair, pair, pair if columns else None)
    return [
        *record(*module, "launch_similarity_lse_loss_fwd", *sums),
        *record(*module, "launch_similarity_lse_loss_bwd", torch.empty(()), *sums),
    ]


def contrast(chip: Chip, m: int, **options) -> list[Launch]:
    """A whole loss and its gradients."""
    return similarity(chip, m, **options) + loss(chip, m)


def softplus(chip: Chip, m: int = 8192, k: int = 8192, d: int = 128, dtype=BF16) -> list[Launch]:
    x, y = torch.empty(m, d, dtype=dtype), torch.empty(k, d, dtype=dtype)
    upstream = torch.empty(m, dtype=torch.float64)
    scalars, options = [torch.tensor(10.0)] * 2, (10.0, -10.0, False, 0, True)
    return [
        *record(
            similarity_softplus, device(chip), "launch_similarity_softplus_fwd",
            x, y, *scalars, *options,
        ),
        *record(
            similarity_softplus, device(chip), "launch_similarity_softplus_bwd",
            upstream, upstream, x, y, *scalars, *options, True, True, True, True,
        ),
    ]  # fmt: skip


def topk(chip: Chip, m: int = 10_000, n: int = 50_000, d: int = 128, k: int = 20, dtype=BF16):
    queries, bank = torch.empty(m, d, dtype=dtype), torch.empty(n, d, dtype=dtype)
    return record(
        similarity_topk, device(chip), "launch_similarity_topk_fwd", queries, bank, k, True
    )


def sinkhorn_plan(chip: Chip, b: int = 2048, k: int = 65536, iterations: int = 3) -> list[Launch]:
    x, rows, columns = torch.empty(b, k), *(torch.empty(n, dtype=torch.float64) for n in (b, k))
    forward = (sinkhorn, device(chip), "launch_sinkhorn_fwd", x, 0.05)
    made = record(*forward, None, None, True, False, True)  # the columns' first sums
    for last in [False] * (iterations - 1) + [True]:
        made += record(*forward, rows, columns, not last, last, True)
    return made


def prototypes(chip: Chip, n: int = 64, k: int = 65536, crops: int = 2, dtype=BF16) -> list[Launch]:
    student, teacher = ([torch.empty(n, k, dtype=dtype)] * v for v in (crops, 2))
    center, loss = torch.empty(2, k), torch.empty(n, dtype=torch.float64)
    stats = torch.empty(crops + 2, n, 2, dtype=torch.float64)
    options = (student, teacher, center, [0, -1], 0.1, 0.04)
    name = "launch_prototype_cross_entropy_"
    return [
        *record(prototype_cross_entropy, device(chip), name + "fwd", *options),
        *record(prototype_cross_entropy, device(chip), name + "bwd", loss, stats, *options),
    ]


def ema(chip: Chip, n: int = 25_600_000) -> list[Launch]:
    target, source = torch.empty(n), torch.empty(n)
    return record(ema_update, device(chip), "launch_ema_update_fwd", [target], [source], None, 0.99)


def lars(chip: Chip, n: int = 25_600_000) -> list[Launch]:
    lists = [[torch.empty(n)] for _ in range(3)] + [[]]
    options = (torch.tensor(0.1), 1.0, 0.9, 1e-4, 1e-3, 0.0, "classic", False, False, None, 0.99)
    return record(lars_step, device(chip), "launch_lars_step_fwd", *lists, *options)


Launches = Callable[..., list[Launch]]


class Case(NamedTuple):
    name: str
    make: Launches
    options: dict = {}  # noqa: RUF012  (read only)

    def launches(self, chip: Chip) -> list[Launch]:
        """Those that compile to code of their own."""
        return self.make(chip, **self.options)


# Every kernel, and of the products every width that has tiles of its own.
SHIPPED = [
    *(Case(f"nt_xent D={d}", similarity, {"d": d}) for d in (64, 128, 256, 512)),
    Case("nt_xent float32", similarity, {"dtype": F32}),
    Case("nt_xent learned scale", similarity, {"learned": True}),
    *(Case(f"clip D={d}", similarity, {"k": 8192, "d": d, "columns": True}) for d in (128, 512)),
    Case("clip learned scale", similarity, {"k": 8192, "columns": True, "learned": True}),
    *(
        Case(f"moco D={d}", similarity, {"m": 256, "k": 65536, "d": d, "mean": True})
        for d in (64, 128, 256)
    ),
    *(Case(f"loss M={m}", loss, {"m": m}) for m in (256, 8192)),
    Case("loss both ways", loss, {"columns": True}),
    Case("siglip", softplus),
    Case("knn", topk),
    Case("sinkhorn", sinkhorn_plan),
    Case("dino", prototypes),
    Case("ema_update", ema),
    Case("lars_step", lars),
]
# What CI compiles: the goals' kernels.
SMALL = [case for case in SHIPPED if case.name in ("nt_xent D=128", "moco D=128", "ema_update")]


class Whole(NamedTuple):
    """A whole op of issue 6's goals."""

    name: str
    make: Launches
    options: dict
    goal: float | None  # ms
    floor: Callable[[Chip], float]  # s, of the arithmetic or the bytes that cannot be avoided
    by_address: bool = False  # its kernel knows tensors by addresses only: it is all bytes, once

    def milliseconds(self, chip: Chip) -> float:
        """Predicted, in a CUDA graph."""
        if self.by_address:
            return 1e3 * (self.floor(chip) + 1e-6 * chip.launch)
        return 1e3 * predict.seconds(self.make(chip, **self.options), chip)


def _products(m: int, k: int, products: float, d: int = 128) -> Callable[[Chip], float]:
    return lambda chip: 2.0 * m * k * d * products / (1e12 * chip.tflops)


def _bytes(n: float) -> Callable[[Chip], float]:
    return lambda chip: n / (1e12 * chip.dram)


def _nt_xent(m: int, goal: float) -> Whole:
    # Goals are set by the full matrix: one product forward, two backward.
    return Whole(f"NT-Xent M={m:,} fwd+bwd", contrast, {"m": m}, goal, _products(m, m, 3))


GOALS = [
    _nt_xent(32_768, 1.6),
    _nt_xent(65_536, 6.4),
    _nt_xent(1_048_576, 1700.0),
    Whole(
        "MoCo 256×65,536 loss + dq", contrast, {"m": 256, "k": 65536, "mean": True},
        0.035, _products(256, 65536, 2),
    ),
    Whole("Sinkhorn 2048×65,536", sinkhorn_plan, {}, 0.62 / 0.8, _bytes(20.0 * 2048 * 65536)),
    Whole("EMA ResNet-50", ema, {}, 12 * 25.6e6 / 4.3e9 / 0.9, _bytes(12 * 25.6e6), True),
]  # fmt: skip
