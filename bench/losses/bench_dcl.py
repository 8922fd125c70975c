"""Decoupled contrastive learning over two views: ``fastssl bench dcl``."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least
from bench.harness import Answer, Benchmark, Case, Provider
from bench.losses.bench_nt_xent import inputs


def answer(case: Case, views: tuple[Tensor, ...]) -> Answer:
    x = torch.cat([view.detach() for view in views]).double()  # [M, D]
    n = len(x) // 2
    pair = torch.arange(2 * n, device=x.device).roll(n)
    loss, d_z = truth.symmetric(truth.unit(x), 1 / case.temperature, pair, decoupled=True)
    return Answer(loss, truth.through_norm(x, d_z).split(n))


def eager(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    n = len(z0)
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    logits = z @ z.T / temperature  # [M, M]
    i = torch.arange(2 * n, device=z.device)
    positive = logits[i, i.roll(n)]
    apart = torch.zeros_like(logits, dtype=torch.bool)
    apart[i, i] = apart[i, i.roll(n)] = True
    return (logits.masked_fill(apart, float("-inf")).logsumexp(1) - positive).mean()


def _fastssl(case: Case):
    from fastssl.functional import dcl

    return functools.partial(dcl, temperature=case.temperature)


def _lightly(case: Case):
    return peers._peer("lightly.loss", "lightly").DCLLoss(temperature=case.temperature)


BENCH = Benchmark(
    name="dcl",
    title="Decoupled contrastive loss, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider(
            "eager",
            lambda case: functools.partial(eager, temperature=case.temperature),
            matrices=4.4,
        ),
        Provider(
            "torch.compile",
            lambda case: peers.compiled(lambda z0, z1: eager(z0, z1, case.temperature)),
            matrices=2.4,
        ),
        Provider("lightly", _lightly, matrices=3),
    ),
    flops=lambda case: 4.0 * case.rows**2 * case.dim,
    rows=(512, 2048, 8192),
    memory_rows=(8192,),
    goals=(at_least(3, "ratio", "torch.compile", rows=8192, **BF16),),
)
