"""DINO's loss, two views of M samples over 65,536 prototypes: ``fastssl bench dino``.

Bytes, in matrices of M×K logits, of S crops and T views: the forward reads S + T, the backward
reads them again and writes S; eager reads and writes more than twenty. Memory counts the student's
gradient, S matrices that every way needs and that are the caller's: 32 of the MiB at M = 64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.goals import at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider

PROTOTYPES = 65_536
VIEWS = 2
TEMPERATURES = 0.1, 0.04  # student's, teacher's

Loss = Callable[..., Tensor]


def inputs(case: Case, crops: int) -> tuple[Tensor, ...]:
    """The student's logits [S, M, K], which require grad, the teacher's [T, M, K], a centre [K]."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, PROTOTYPES, generator=generator, device=case.device)

    student, teacher = (noise(n, case.rows).to(case.torch_dtype) for n in (crops, VIEWS))
    return student.requires_grad_(), teacher, 0.1 * noise()


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    student, teacher, center = (t.detach() for t in tensors)
    crops, rows, _ = student.shape
    pairs = crops * VIEWS - VIEWS
    loss, gradient = center.new_zeros((), dtype=torch.float64), []
    for i in range(rows):  # one at a time: the float64 truth is to fit beside the inputs
        logits = student[:, i].double() / TEMPERATURES[0]  # [S, K]
        q = ((teacher[:, i].double() - center.double()) / TEMPERATURES[1]).softmax(1)  # [T, K]
        log_p = logits.log_softmax(1)
        targets = q.sum(0).repeat(crops, 1)
        targets[:VIEWS] -= q
        loss -= (targets * log_p).sum()
        met = targets.sum(1, keepdim=True).round()
        gradient.append((met * log_p.exp() - targets) / (TEMPERATURES[0] * pairs * rows))
    wide = torch.promote_types(student.dtype, torch.float32)
    return Answer(loss / (pairs * rows), (torch.stack(gradient, 1).to(wide),))


def eager(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """As DINO's authors have it."""
    crops = student / TEMPERATURES[0]
    views = ((teacher - center) / TEMPERATURES[1]).softmax(dim=-1).detach()
    total, terms = torch.zeros((), device=student.device), 0
    for t, q in enumerate(views):
        for s in range(len(crops)):
            if s != t:
                total = total + torch.sum(-q * F.log_softmax(crops[s], dim=-1), dim=-1).mean()
                terms += 1
    return total / terms


def _fastssl(case: Case) -> Loss:
    from fastssl.functional import dino_loss

    return dino_loss


def _lightly(case: Case) -> Loss:
    module = peers._peer("lightly.loss", "lightly")
    loss = module.DINOLoss(PROTOTYPES, center_momentum=1.0).to(case.device)  # its centre stays

    def function(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        loss.center.copy_(center)
        return loss(list(teacher), list(student))

    return function


PROVIDERS = (
    Provider("fastssl", _fastssl),
    Provider("eager", lambda case: eager),
    Provider("torch.compile", lambda case: peers.compiled(eager)),
    Provider("lightly", _lightly),
)


def benchmark(
    name: str, title: str, crops: int, providers: tuple[Provider, ...], goals: tuple
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        inputs=lambda case: inputs(case, crops),
        truth=answer,
        providers=providers,
        flops=lambda case: 0.0,
        bytes=lambda case: (
            (3.0 * crops + 2 * VIEWS) * case.rows * PROTOTYPES * case.torch_dtype.itemsize
        ),
        rows=(16, 64),
        memory_rows=(64,),
        goals=goals,
    )


BENCH = benchmark(
    "dino",
    "DINO's loss of M samples in two views over 65,536 prototypes, forward + backward",
    VIEWS,
    PROVIDERS,
    (
        at_least(3, "ratio", "eager", rows=64),
        at_most(36, "memory_mib", "fastssl", rows=64),  # the gradient, and a tenth of eager's rest
        at_least(3, "ratio", "torch.compile", rows=64, device="cuda"),
        at_least(3, "ratio", "torch.compile", rows=64, device="cuda", dtype="bfloat16"),
    ),
)
