"""The op under the sigmoid loss: all rows against all columns, scale and bias learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Answer, Benchmark, Case, Provider
from bench.peers import compiled
from bench.truth import blocks, unit

BIAS = -10.0


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Two noisy views of N random directions [N, D], normalised, and the scale and the bias."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise() -> Tensor:
        return torch.randn(case.rows, case.dim, generator=generator, device=case.device)

    shared = noise()
    features = (unit(shared + noise()).to(case.torch_dtype) for _ in range(2))
    wide = torch.promote_types(case.torch_dtype, torch.float32)
    scalars = (
        torch.tensor(v, dtype=wide, device=case.device) for v in (1 / case.temperature, BIAS)
    )
    return tuple(t.requires_grad_() for t in (*features, *scalars))


def answer(case: Case, tensors: tuple[Tensor, ...], *, diagonal: bool = False) -> Answer:
    """Mean over i of Σ_j softplus(t_ij), its gradients; ``diagonal``: softplus(−t_ii) for j = i."""
    x, y, scale, bias = (t.detach().double() for t in tensors)
    n = len(x)
    loss, d_scale, d_bias = x.new_zeros(3)
    d_x, d_y = torch.empty_like(x), torch.zeros_like(y)
    for i, k in blocks(n, n, case.device):
        similarities = x[i:k] @ y.T  # [B, N]
        logits = scale * similarities + bias
        loss -= F.logsigmoid(-logits).sum()
        g = torch.sigmoid(logits)
        if diagonal:  # softplus(−t) = softplus(t) − t
            loss -= logits[:, i:k].trace()
            g[:, i:k].diagonal().sub_(1)
        d_scale += (g * similarities).sum()
        d_bias += g.sum()
        d_x[i:k] = scale * g @ y
        d_y += scale * g.T @ x[i:k]
    return Answer(loss / n, tuple(d / n for d in (d_x, d_y, d_scale, d_bias)))


def flops(case: Case) -> float:
    """The similarities and the gradients of either side: three N×N×D products."""
    return 6.0 * case.rows**2 * case.dim


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(scale * x @ y.T + bias).sum(1).mean()


def _fastssl(case: Case):
    from fastssl.ops import similarity_softplus

    return lambda *tensors: similarity_softplus(*tensors)[0].mean()


def _reference(case: Case):
    from fastssl.reference import similarity_softplus

    return lambda *tensors: similarity_softplus(*tensors)[0].mean()


BENCH = Benchmark(
    name="similarity_softplus",
    title="similarity_softplus of N rows and N columns, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("reference", _reference, matrices=16),
        Provider("eager", lambda case: eager, matrices=5),
        Provider("torch.compile", lambda case: compiled(eager), matrices=3),
    ),
    flops=flops,
    rows=(127, 1024, 8192),
    memory_rows=(8192,),
)
