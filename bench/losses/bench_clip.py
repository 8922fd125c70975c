"""CLIP's loss over N image-text pairs: ``fastssl bench clip``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, truth
from bench.goals import BF16, at_least
from bench.harness import Answer, Benchmark, Case, Provider


def inputs(case: Case) -> tuple[Tensor, ...]:
    """Two noisy views of N random directions [N, D], normalised, and the scale."""
    generator = torch.Generator(device=case.device).manual_seed(case.seed)

    def noise() -> Tensor:
        return torch.randn(case.rows, case.dim, generator=generator, device=case.device)

    shared = noise()
    image, text = (truth.unit(shared + noise()).to(case.torch_dtype) for _ in range(2))
    wide = torch.float64 if case.dtype == "float64" else torch.float32
    scale = torch.tensor(1 / case.temperature, dtype=wide, device=case.device)
    return image.requires_grad_(), text.requires_grad_(), scale.requires_grad_()


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    x, y, scale = (t.detach().double() for t in tensors)
    n = len(x)
    lse, column_lse = (torch.cat(list(lses(a, b, scale, case.device))) for a, b in ((x, y), (y, x)))
    pair = (x * y).sum(1)
    loss = (lse + column_lse).mean() - 2 * scale * pair.mean()
    d_x, d_y, d_scale = -2 * y, -2 * x, -2 * pair.sum()
    for i, k in truth.blocks(n, n, case.device):
        similarities = x[i:k] @ y.T  # [B, N]
        logits = scale * similarities
        p = (logits - lse[i:k, None]).exp_() + (logits - column_lse).exp_()
        d_x[i:k] += p @ y
        d_y += p.T @ x[i:k]
        d_scale += (p * similarities).sum()
    return Answer(loss / 2, tuple(d / (2 * n) for d in (scale * d_x, scale * d_y, d_scale)))


def lses(x: Tensor, y: Tensor, scale: Tensor, device: str):
    for i, k in truth.blocks(len(x), len(y), device):
        yield (scale * x[i:k] @ y.T).logsumexp(1)


def eager(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Both directions from one matrix."""
    logits = scale * image @ text.T  # [N, N]
    own = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _fastssl(case: Case):
    from fastssl.functional import clip_loss

    return clip_loss


def _open_clip(case: Case):
    return peers._peer("open_clip.loss", "open_clip_torch").ClipLoss()


def _memeff(case: Case):
    module = peers._cuda_peer("memeff", "memeff", case)
    loss = module.MemoryEfficientCLIPLoss(
        temperature=case.temperature, normalized_inputs=True, stable=False
    )
    return lambda image, text, scale: loss(image, text)


BENCH = Benchmark(
    name="clip",
    title="CLIP's loss of N pairs, forward + backward",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", _fastssl),
        Provider("eager", lambda case: eager, matrices=4.1),
        Provider("torch.compile", lambda case: peers.compiled(eager), matrices=2.1),
        Provider("open_clip", _open_clip, matrices=4.2),
        Provider("memeff", _memeff, differs="its temperature is a number and has no gradient"),
    ),
    # The similarities and the gradients of either side: three N×N×D products.
    flops=lambda case: 6.0 * case.rows**2 * case.dim,
    rows=(512, 2048, 8192),
    memory_rows=(8192,),
    goals=(
        at_least(6, "ratio", "open_clip", rows=8192),
        at_least(3, "ratio", "torch.compile", rows=8192, **BF16),
    ),
)
