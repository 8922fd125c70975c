"""MoCo's InfoNCE, 256 queries against a queue of K keys: ``fastssl bench info_nce_queue``."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider

QUERIES = 256


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Queries [B, D], not normalised, their keys [B, D] and the queue [K, D], which are and which
    require no grad; K is the case's rows."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise(rows: int) -> Tensor:
        return torch.randn(rows, case.dim, generator=generator, device=case.device)

    batch = min(QUERIES, case.rows)
    shared = noise(batch)
    query, key, queue = shared + noise(batch), shared + noise(batch), noise(case.rows)
    key, queue = (truth.unit(keys.double()).to(case.torch_dtype) for keys in (key, queue))
    return query.to(case.torch_dtype).requires_grad_(), key, queue


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    x, key, queue = (t.detach().double() for t in tensors)
    query, key, queue = (truth.unit(t) for t in (x, key, queue))
    scale = 1 / case.temperature
    loss, d_query = query.new_zeros(()), torch.empty_like(query)
    for i, k in truth.blocks(len(query), len(queue), case.device):
        positive = (query[i:k] * key[i:k]).sum(1, keepdim=True)
        logits = scale * torch.cat([positive, query[i:k] @ queue.T], dim=1)  # [b, 1 + K]
        lse = logits.logsumexp(1, keepdim=True)
        loss += (lse[:, 0] - logits[:, 0]).sum()
        p = (logits - lse).exp_()
        d_query[i:k] = (p[:, :1] - 1) * key[i:k] + p[:, 1:] @ queue
    batch = len(query)
    return Answer(loss / batch, (truth.through_norm(x, d_query * (scale / batch)),))


def eager(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """As MoCo's builder has it, keys normalised before."""
    query = F.normalize(query, dim=1)
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # [B, 1 + K]
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def _fastssl(case: Case):
    from fastssl.functional import info_nce

    return functools.partial(info_nce, temperature=case.temperature)


def _compiled(case: Case):
    return peers.compiled(lambda *tensors: eager(*tensors, case.temperature))


def _info_nce(case: Case):
    return peers._peer("info_nce", "info-nce-pytorch").InfoNCE(temperature=case.temperature)


def _cut_cross_entropy(case: Case):
    lse = peers.row_lse(case)

    def loss(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        query = F.normalize(query, dim=1) / case.temperature
        positive = (query.float() * key.float()).sum(1)
        return (torch.logaddexp(lse(query, queue), positive) - positive).mean()

    return loss


BENCH = Benchmark(
    name="info_nce_queue",
    title=f"InfoNCE of {QUERIES} queries against a queue of M keys, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("eager", lambda case: functools.partial(eager, temperature=case.temperature)),
        Provider("torch.compile", _compiled),
        Provider("info-nce-pytorch", _info_nce),
        Provider("cut-cross-entropy", _cut_cross_entropy),
    ),
    # The similarities and the gradient of the queries: two B×K×D products.
    flops=lambda case: 4.0 * min(QUERIES, case.rows) * case.rows * case.dim,
    rows=(4096, 16384, 65536),
    memory_rows=(65536,),
    goals=(
        at_least(4, "ratio", "eager", rows=65536),
        at_least(0.7, "of_floor", "fastssl", rows=65536),
        at_most(0.035, "graph_ms", "fastssl", rows=65536, **BF16),
        at_least(8, "graph_ratio", "eager", rows=65536, **BF16),
    ),
)
