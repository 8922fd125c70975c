"""The op under the contrastive losses: rows against themselves, self left out."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import truth
from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled


def inputs(case: Case) -> tuple[Tensor, ...]:
    generator = torch.Generator(device=case.device).manual_seed(case.seed)
    x = torch.randn(case.rows, case.dim, generator=generator, device=case.device)
    return (x.to(case.torch_dtype).requires_grad_(),)


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    x = tensors[0].detach().double()
    scale = 1 / case.temperature
    if len(x) <= truth.FULL[case.device]:
        loss, d_z = truth.symmetric(truth.unit(x), scale, None)
        return Answer(loss, (truth.through_norm(x, d_z),))
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: truth.SAMPLE]
    some = some.to(x.device)
    quick = case.dtype in ("bfloat16", "float16")
    loss, d_z = truth.symmetric_sample(truth.unit(x), scale, None, some, quick)
    return Answer(loss, (truth.through_norm(x[some], d_z),), some)


def eager_mean_lse(x: Tensor, scale: float) -> Tensor:
    z = F.normalize(x, dim=1)
    logits = z @ z.T * scale
    logits.fill_diagonal_(float("-inf"))
    return logits.logsumexp(1).mean()


def _mean_lse(op, case: Case):
    options = {"scale": 1 / case.temperature, "normalize": True, "self_offset": 0}
    return lambda x: op(x, **options)[0].mean()


def _fastssl(case: Case):
    from fastssl.ops import similarity_lse

    return _mean_lse(similarity_lse, case)


def _reference(case: Case):
    from fastssl.reference import similarity_lse

    return _mean_lse(similarity_lse, case)


def _eager(case: Case):
    return functools.partial(eager_mean_lse, scale=1 / case.temperature)


BENCH = Benchmark(
    name="similarity_lse",
    title="similarity_lse of rows with themselves, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("reference", _reference, matrices=11),
        Provider("eager", _eager, matrices=3.1),
        Provider(
            "torch.compile",
            lambda case: compiled(lambda x: eager_mean_lse(x, 1 / case.temperature)),
            matrices=2.1,
        ),
    ),
    flops=lambda case: 4.0 * case.rows**2 * case.dim,
    rows=(127, 1024, 8192),
    memory_rows=(8192,),
)
