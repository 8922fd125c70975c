"""The op under kNN evaluation: the neighbours of M queries in a bank of ten times as many."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench import truth
from bench.goals import BF16, at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled

BANK = 10  # its rows, in those of the queries
CHUNK = 1024  # queries at a time, where the matrix is written by parts
GOLDEN = 0.6180339887498949

Topk = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Queries [M, D] and bank [10·M, D], of unit length; neither requires grad."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    return tuple(
        truth.unit(
            torch.randn(rows, case.dim, generator=generator, device=case.device, dtype=torch.double)
        ).to(case.torch_dtype)
        for rows in (case.rows, BANK * case.rows)
    )


def score(values: Tensor, indices: Tensor) -> Tensor:
    """One number that knows of every neighbour: the mean similarity, each weighted by its index."""
    parts = zip(values.split(CHUNK), indices.split(CHUNK), strict=True)  # little of one's own
    return sum((v.double() * (1 + i * GOLDEN % 1)).sum() for v, i in parts) / values.numel()


def by_matrix(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch.topk(queries @ bank.T, k)


def by_chunks(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = zip(*(by_matrix(q, bank, k) for q in queries.split(CHUNK)), strict=True)
    return torch.cat(values), torch.cat(indices)


def fastssl(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from fastssl.ops import similarity_topk

    return similarity_topk(queries, bank, k)


def reference(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    from fastssl.reference import similarity_topk

    return similarity_topk(queries, bank, k)


def benchmark(name: str, k: int) -> Benchmark:
    def scored(topk: Topk) -> Callable[[Case], Callable[..., Tensor]]:
        return lambda case: lambda queries, bank: score(*topk(queries, bank, k))

    def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
        queries, bank = (t.double() for t in tensors)
        total = queries.new_zeros(())
        for i, j in truth.blocks(len(queries), len(bank), case.device):
            total += (j - i) * score(*by_matrix(queries[i:j], bank, k))
        return Answer(total / len(queries), ())

    return Benchmark(
        name=name,
        title=f"similarity_topk: {k} neighbours of M queries in a bank of {BANK}·M; no gradient",
        inputs=inputs,
        truth=answer,
        providers=(
            Provider("fastssl", scored(fastssl)),
            Provider("reference", scored(reference), matrices=8.0 * BANK),
            Provider("eager", scored(by_matrix), matrices=1.1 * BANK),
            Provider(
                "torch.compile",
                lambda case: compiled(lambda *inputs: score(*by_matrix(*inputs, k))),
                matrices=1.1 * BANK,
            ),
            Provider("eager by chunks", scored(by_chunks)),
        ),
        flops=lambda case: 2.0 * BANK * case.rows**2 * case.dim,
        rows=(1000, 10000),
        memory_rows=(10000,),
        goals=(
            at_least(2, "ratio", "eager", rows=10000),
            # A hundredth of the matrix of 10,000 × 100,000.
            at_most(4e9 / 100 / 2**20, "memory_mib", "fastssl", rows=10000),
            at_least(3, "ratio", "torch.compile", rows=8192, **BF16),
        ),
    )


BENCH = benchmark("similarity_topk", 20)
