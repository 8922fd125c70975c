"""Comparisons with the truth: the reference in float64 on the same rounded inputs."""

from __future__ import annotations

import torch
from torch import Tensor

import fastssl
from fastssl.functional import nt_xent

LOSS = 1e-6  # relative, whatever the input dtype: the products of rounded inputs are summed in fp32
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}  # relative L2
# A similarity known to float32 is uncertain by this much, and a logit by scale times that.
UNIT = 2.0**-23


def relative(a: Tensor, b: Tensor, floor: float = 0.0) -> float:
    """‖a − b‖ / max(‖b‖, floor); 0 where both vanish. NaN and infinity never pass."""
    a, b = a.detach().double(), b.detach().double()
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    difference, size = (a - b).norm().item(), max(b.norm().item(), floor)
    return difference / size if size > 0 else difference


def loss_and_gradients(
    z0: Tensor, z1: Tensor, temperature: float, backend: str, upstream: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nt_xent(reduction="none") and its gradients for z0, z1 and the temperature."""
    z0, z1 = z0.detach().requires_grad_(), z1.detach().requires_grad_()
    wide = torch.float64 if z0.dtype == torch.float64 else torch.float32
    # The temperature in the precision of the truth, so that both see one number.
    t = torch.tensor(temperature, dtype=torch.float32).to(wide).requires_grad_()
    with fastssl.use_backend(backend):
        loss = nt_xent(z0, z1, t, reduction="none", **options)
    gradients = torch.autograd.grad(loss, (z0, z1, t), upstream.to(loss.dtype))
    return loss.detach(), *gradients


def truth(z0: Tensor, z1: Tensor, temperature: float, upstream: Tensor, **options):
    """The same from the reference in float64."""
    return loss_and_gradients(
        z0.double(), z1.double(), temperature, "reference", upstream, **options
    )


def gradient_terms(
    z0: Tensor, z1: Tensor, temperature: float, upstream: Tensor, normalize: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes of the terms that each gradient is a sum of: what is left after they cancel cannot be
    more exact than a rounding of these. Shapes of z0, z1 (a column each) and the temperature."""
    z = torch.cat([z0, z1]).double()  # [M, D]
    m = len(z)
    norm = z.norm(dim=1, keepdim=True)
    inverse = torch.where(norm < 1e-12, 0.0, 1 / norm) if normalize else torch.ones_like(norm)
    z = z * inverse
    size = z.norm(dim=1, keepdim=True)
    similarity = z @ z.T
    logits = similarity / temperature
    pair = torch.arange(m).roll(m // 2)
    positive = logits[torch.arange(m), pair]
    negatives = logits.clone().fill_diagonal_(float("-inf"))
    negatives[torch.arange(m), pair] = float("-inf")
    lse = negatives.logsumexp(dim=1)
    slope = torch.sigmoid(lse - positive) * upstream.double().abs()
    weights = slope[:, None] * (negatives - lse[:, None]).exp().nan_to_num(0)  # [M, M]
    weights[torch.arange(m), pair] += slope
    rows = (weights + weights.T) @ size * inverse / temperature  # [M, 1]
    total = (weights * similarity.abs()).sum() / temperature**2
    return *rows.chunk(2), total
