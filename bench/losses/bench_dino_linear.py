"""DINO's loss of features and the last layers' weights: ``fastssl bench dino_linear``.

Memory counts the gradient of the student's weights, K×D, which every way needs: 32 of the MiB at
D = 128. Beside it, eager and torch.compile hold all logits and their gradient, fastssl those of a
few samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.goals import at_least, at_most
from bench.harness import Answer, Benchmark, Case, Provider
from bench.losses.bench_dino import PROTOTYPES, TEMPERATURES, VIEWS, Loss, eager

CROPS = 10


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Features of ten crops [S, M, D] and the student's weights [K, D], which require grad, those
    of the teacher's two views and its weights, and a centre [K]."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=case.device)

    student, teacher = (F.normalize(noise(n, case.rows, case.dim), dim=2) for n in (CROPS, VIEWS))
    weights = [F.normalize(noise(PROTOTYPES, case.dim), dim=1) for _ in range(2)]
    student, teacher, *weights = (t.to(case.torch_dtype) for t in (student, teacher, *weights))
    center = 0.1 * noise(PROTOTYPES)
    return student.requires_grad_(), weights[0].requires_grad_(), teacher, weights[1], center


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    student, weight, teacher, other, center = (t.detach() for t in tensors)
    pairs, rows = CROPS * VIEWS - VIEWS, student.shape[1]
    wide, wide_other = weight.double(), other.double()
    loss = wide.new_zeros(())
    d_student, d_weight = torch.empty_like(student, dtype=torch.float64), torch.zeros_like(wide)
    for i in range(rows):  # one at a time: the float64 truth is to fit beside the inputs
        features = student[:, i].double()  # [S, D]
        log_p = (features @ wide.T / TEMPERATURES[0]).log_softmax(1)  # [S, K]
        q = ((teacher[:, i].double() @ wide_other.T - center.double()) / TEMPERATURES[1]).softmax(1)
        targets = q.sum(0).repeat(CROPS, 1)
        targets[:VIEWS] -= q
        loss -= (targets * log_p).sum()
        met = targets.sum(1, keepdim=True).round()
        gradient = (met * log_p.exp() - targets) / (TEMPERATURES[0] * pairs * rows)
        d_student[:, i] = gradient @ wide
        d_weight.addmm_(gradient.T, features)
    return Answer(loss / (pairs * rows), (d_student, d_weight))


def on_logits(loss: Loss) -> Loss:
    """The loss behind its layers."""

    def function(
        student: Tensor, weight: Tensor, teacher: Tensor, other: Tensor, center: Tensor
    ) -> Tensor:
        with torch.no_grad():
            views = F.linear(teacher, other)
        return loss(F.linear(student, weight), views, center)

    return function


def _fastssl(case: Case) -> Loss:
    from fastssl.functional import dino_loss

    return lambda student, weight, teacher, other, center: dino_loss(
        student, teacher, center, prototypes=(weight, other)
    )


def _on_logits(case: Case) -> Loss:
    from fastssl.functional import dino_loss

    return on_logits(dino_loss)


BENCH = Benchmark(
    name="dino_linear",
    title="DINO's loss of M samples in ten crops and two views, 65,536 prototypes, from features",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("fastssl on logits", _on_logits),
        Provider("eager", lambda case: on_logits(eager)),
        Provider("torch.compile", lambda case: peers.compiled(on_logits(eager))),
    ),
    # The logits, and the gradients of the student's features and weights.
    flops=lambda case: 2.0 * (3 * CROPS + VIEWS) * case.rows * PROTOTYPES * case.dim,
    rows=(16, 64),
    memory_rows=(64,),
    goals=(
        at_least(1.5, "ratio", "eager", rows=64),
        at_most(100, "memory_mib", "fastssl", rows=64),
    ),
)
