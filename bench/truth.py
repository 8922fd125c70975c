"""The float64 answer of the losses over one symmetric matrix, in row blocks.

Closed form rather than autograd of a reference, so that it fits in memory at any size and shares
no code with what it judges.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Logits in one block of rows: 256 MB of float64.
BLOCK = {"cpu": 1 << 22, "cuda": 1 << 27}
# Above this many rows the gradient is known for a sample of rows only.
FULL = {"cpu": 16384, "cuda": 65536}
SAMPLE = 256


def unit(x: Tensor) -> Tensor:
    """Vectors [..., D] divided by their lengths."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def blocks(rows: int, columns: int, device: str) -> list[tuple[int, int]]:
    height = max(1, BLOCK[device] // columns)
    return [(i, min(i + height, rows)) for i in range(0, rows, height)]


def symmetric(
    z: Tensor,  # [M, D] unit rows, float64
    scale: float,
    pair: Tensor | None,  # [M], an involution, or None
    decoupled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean over i of ``log Σ_{j≠i} exp(scale·z_i·z_j) − scale·z_i·z_pair(i)``, and d/dz [M, D].

    ``decoupled``: without the pair in the sum.
    """
    m = z.shape[0]
    total = z.new_zeros(())
    d_z = torch.zeros_like(z)
    for i, k in blocks(m, m, z.device.type):
        logits = masked(z[i:k], z, scale, i)  # [B, M]
        if decoupled:
            logits[torch.arange(k - i, device=z.device), pair[i:k]] = float("-inf")
        lse = logits.logsumexp(1, keepdim=True)
        total += lse.sum()
        p = (logits - lse).exp_()
        d_z[i:k] += p @ z
        d_z.addmm_(p.T, z[i:k])
    if pair is not None:
        total -= scale * (z * z[pair]).sum()
        d_z -= 2 * z[pair]
    return total / m, d_z * (scale / m)


def symmetric_sample(
    z: Tensor,  # [M, D] unit rows, float64
    scale: float,
    pair: Tensor | None,
    sample: Tensor,  # [B]
    quick: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`symmetric`, with d/dz for the sampled rows only, [B, D].

    The other rows' log-sum-exps come from float32 products (``quick``: tensor-core ones).
    """
    m = z.shape[0]
    lse = z.new_empty(m)
    narrow = z.float()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = quick
    try:
        for i, k in blocks(m, m, z.device.type):
            lse[i:k] = masked(narrow[i:k], narrow, scale, i).logsumexp(1)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    logits = scale * z[sample] @ z.T  # [B, M]
    logits[torch.arange(len(sample), device=z.device), sample] = float("-inf")
    lse[sample] = logits.logsumexp(1)
    weights = (logits - lse[sample, None]).exp_() + (logits - lse).exp_()
    d_z = weights @ z
    loss = lse.mean()
    if pair is not None:
        loss = loss - scale * (z * z[pair]).sum() / m
        d_z -= 2 * z[pair[sample]]
    return loss, d_z * (scale / m)


def masked(rows: Tensor, z: Tensor, scale: float, first: int) -> Tensor:
    """Logits [B, M] of rows ``first …`` with themselves left out."""
    logits = (scale * rows) @ z.T
    i = torch.arange(len(rows), device=z.device)
    logits[i, first + i] = float("-inf")
    return logits


def through_norm(x: Tensor, d_z: Tensor) -> Tensor:
    """The gradient of ``x`` [B, D] from that of its unit rows."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    z = x / norm
    return (d_z - z * (z * d_z).sum(1, keepdim=True)) / norm
