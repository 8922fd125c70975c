"""SupCon over two views of N samples in 100 classes: ``fastssl bench sup_con``."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least
from bench.harness import Answer, Benchmark, Case, Provider

CLASSES = 100


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Two noisy views of N random directions [N, 2, D], normalised; the labels [N]."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    n = case.rows // 2
    shared, *noise = torch.randn(3, n, case.dim, generator=generator, device=case.device)
    features = truth.unit(torch.stack([shared + one for one in noise], dim=1))
    labels = torch.arange(n, device=case.device) % CLASSES
    return features.to(case.torch_dtype).requires_grad_(), labels


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    features, labels = tensors
    x = features.detach().double().flatten(0, 1)  # [M, D]
    classes, scale = labels.repeat_interleave(2), 1 / case.temperature
    loss, d_x = truth.symmetric(x, scale, None)
    sums = x.new_zeros(CLASSES, case.dim).index_add_(0, classes, x)
    others = sums[classes] - x
    each = scale / (classes.bincount()[classes] - 1)[:, None] / len(x)  # 1/|P(i)|, one a class
    loss -= (each * x * others).sum()
    d_x -= 2 * each * others
    return Answer(loss, (d_x.view_as(features),))


def eager(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The paper's formula in few lines."""
    x, classes = features.flatten(0, 1), labels.repeat_interleave(2)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    positives = (classes[:, None] == classes) & ~itself
    logits = x @ x.T / temperature  # [M, M]
    lse = logits.masked_fill(itself, float("-inf")).logsumexp(1)
    return (lse - (logits * positives).sum(1) / positives.sum(1)).mean()


def authors_formula(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The arithmetic of HobbitLong's SupConLoss, contrast_mode "all", at base temperature."""
    n, views = features.shape[:2]
    x = torch.cat(features.unbind(1))
    labels = labels[:, None]
    mask = torch.eq(labels, labels.T).to(x.dtype)
    logits = torch.div(x @ x.T, temperature)
    shifted = logits - logits.max(dim=1, keepdim=True).values.detach()
    mask = mask.repeat(views, views)
    itself = torch.arange(n * views, device=x.device)[:, None]
    others = torch.ones_like(mask).scatter(1, itself, 0)
    mask = mask * others
    weights = shifted.exp() * others
    log_prob = shifted - weights.sum(1, keepdim=True).log()
    return -((mask * log_prob).sum(1) / mask.sum(1)).view(views, n).mean()


def _fastssl(case: Case):
    from fastssl.functional import sup_con

    return lambda features, labels: sup_con(features, labels, case.temperature)


def _at(formula, case: Case):
    return lambda features, labels: formula(features, labels, case.temperature)


BENCH = Benchmark(
    name="sup_con",
    title=f"SupCon over two views, {CLASSES} classes, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("eager", lambda case: _at(eager, case), matrices=5.3),
        Provider("torch.compile", lambda case: peers.compiled(_at(eager, case)), matrices=1.2),
        Provider("supcontrast-formula", lambda case: _at(authors_formula, case), matrices=8.1),
    ),
    flops=lambda case: 4.0 * case.rows**2 * case.dim,
    rows=(512, 2048, 8192),
    memory_rows=(8192,),
    goals=(
        at_least(10, "ratio", "supcontrast-formula", rows=8192),
        at_least(3, "ratio", "torch.compile", rows=8192, **BF16),
    ),
)
