"""NT-Xent over two views: ``fastssl bench nt_xent``, ``pytest bench/``."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least, at_most
from bench.harness import Answer, Benchmark, Case


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    """Two noisy views of N random directions: z0, z1 [N, D], neither normalised."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise() -> Tensor:
        return torch.randn(case.rows // 2, case.dim, generator=generator, device=case.device)

    shared = noise()
    z0, z1 = ((shared + noise()).to(case.torch_dtype).requires_grad_() for _ in range(2))
    return z0, z1


def answer(case: Case, views: tuple[Tensor, ...]) -> Answer:
    """Loss and gradients in float64 on the same rounded inputs."""
    x = torch.cat([view.detach() for view in views]).double()  # [M, D]
    n, scale = len(x) // 2, 1 / case.temperature
    z = truth.unit(x)
    pair = torch.arange(2 * n, device=x.device).roll(n)
    if len(x) <= truth.FULL[case.device]:
        loss, d_z = truth.symmetric(z, scale, pair)
        return Answer(loss, truth.through_norm(x, d_z).split(n))
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: truth.SAMPLE]
    some = some.to(x.device)
    both = torch.cat([some, some + n])
    quick = case.dtype in ("bfloat16", "float16")
    loss, d_z = truth.symmetric_sample(z, scale, pair, both, quick)
    return Answer(loss, truth.through_norm(x[both], d_z).split(len(some)), some)


def flops(case: Case) -> float:
    """Two full M×M×D products on the CPU, as its goal is set; three, as a streamed method without
    symmetry needs, for the roofline on CUDA."""
    return (6.0 if case.device == "cuda" else 4.0) * case.rows**2 * case.dim


CPU_GOALS = (
    at_least(10, "ratio", "eager", rows=8192),
    at_least(6, "ratio", "torch.compile", rows=8192),
    at_least(14, "ratio", "lightly", rows=8192),
    at_least(0.7, "of_floor", "fastssl", rows=8192),
    *(at_least(1, "ratio", "eager", rows=m) for m in (128, 256, 512, 1024, 2048, 4096, 8192)),
    at_most(64, "memory_mib", "fastssl", rows=32768),
)
LIGHTLY = "lightly|lightly-formula"
CUDA_GOALS = (
    at_most(2.3, "p50", "fastssl", rows=32768, **BF16),
    at_most(9.3, "p50", "fastssl", rows=65536, **BF16),
    at_least(0.45, "of_floor", "fastssl", rows=32768, **BF16),
    at_least(0.45, "of_floor", "fastssl", rows=65536, **BF16),
    *(at_least(15, "ratio", LIGHTLY, rows=m, **BF16) for m in (8192, 32768, 65536)),
    *(at_least(3, "ratio", "torch.compile", rows=m, **BF16) for m in (8192, 32768, 65536)),
    *(at_least(3, "ratio", "memeff", rows=m, **BF16) for m in (32768, 65536)),
    *(at_least(1, "ratio", "eager", rows=m, **BF16) for m in (256, 512, 1024)),
    *(at_least(1, "graph_ratio", "eager", rows=m, **BF16) for m in (256, 512, 1024)),
    at_most(1.2e9 / 2**20, "memory_mib", "fastssl", rows=1048576, **BF16),
)

BENCH = Benchmark(
    name="nt_xent",
    title="NT-Xent, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=peers.NT_XENT,
    flops=flops,
    rows=(128, 256, 512, 1024, 2048, 4096, 8192),
    memory_rows=(512, 2048, 8192, 32768, 131072),
    goals=CPU_GOALS + CUDA_GOALS,
)
