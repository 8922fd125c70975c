"""NT-Xent over four views of N samples: ``fastssl bench multi_view``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least
from bench.harness import Answer, Benchmark, Case, Provider

VIEWS = 4


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Noisy views of N random directions [N, V, D], not normalised; M = N·V."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    n = case.rows // VIEWS
    shared, *noise = torch.randn(VIEWS + 1, n, case.dim, generator=generator, device=case.device)
    z = torch.stack([shared + one for one in noise], dim=1)
    return (z.to(case.torch_dtype).requires_grad_(),)


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    x = tensors[0].detach().double()
    z, scale = truth.unit(x), 1 / case.temperature
    rows = z.flatten(0, 1)  # [M, D]
    loss, d_z = truth.symmetric(rows, scale, None)
    logits = scale * z @ z.mT  # [N, V, V]
    logits.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    lse = logits.logsumexp(2, keepdim=True)
    p = (logits - lse).exp()
    d_z -= (scale / len(rows)) * ((p + p.mT) @ z).flatten(0, 1)
    d_x = truth.through_norm(x.flatten(0, 1), d_z).view_as(x)
    return Answer(loss - lse.mean(), (d_x,))


def eager(z: Tensor, temperature: float) -> Tensor:
    n, views = z.shape[:2]
    rows = F.normalize(z.flatten(0, 1), dim=1)
    logits = rows @ rows.T / temperature  # [M, M]
    sample = torch.arange(n, device=z.device).repeat_interleave(views)
    same = sample[:, None] == sample
    itself = torch.eye(len(rows), dtype=torch.bool, device=z.device)
    everything = logits.masked_fill(itself, float("-inf")).logsumexp(1)
    return (everything - logits.masked_fill(~same | itself, float("-inf")).logsumexp(1)).mean()


def solo_learn_formula(z: Tensor, temperature: float) -> Tensor:
    """The arithmetic of solo-learn's simclr_loss_func on one rank."""
    n, views = z.shape[:2]
    rows = F.normalize(z.flatten(0, 1), dim=-1)
    indexes = torch.arange(n, device=z.device).repeat_interleave(views)[None]
    sim = torch.exp(torch.einsum("if, jf -> ij", rows, rows) / temperature)
    positives = indexes == indexes.T
    positives.fill_diagonal_(False)
    pos = torch.sum(sim * positives, 1)
    neg = torch.sum(sim * (indexes != indexes.T), 1)
    return -torch.mean(torch.log(pos / (pos + neg)))


def _fastssl(case: Case):
    from fastssl.functional import multi_view_nt_xent

    return lambda z: multi_view_nt_xent(z, temperature=case.temperature)


def _at(formula, case: Case):
    return lambda z: formula(z, case.temperature)


BENCH = Benchmark(
    name="multi_view",
    title=f"NT-Xent over {VIEWS} views, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("eager", lambda case: _at(eager, case), matrices=5.6),
        Provider("torch.compile", lambda case: peers.compiled(_at(eager, case)), matrices=1.2),
        Provider("solo-learn-formula", lambda case: _at(solo_learn_formula, case), matrices=4.4),
    ),
    flops=lambda case: 4.0 * case.rows**2 * case.dim,
    rows=(512, 2048, 8192),
    memory_rows=(8192,),
    goals=(at_least(3, "ratio", "torch.compile", rows=8192, **BF16),),
)
