"""Losses that keep features apart: Barlow Twins' and VICReg's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.distributed import Group, Local, Ranks, agree
from fastssl.functional.common import check_alike, check_scalar, loss_dtype, widened

# Columns of a matrix [D, D] that are computed at a time.
TILE = 512
# So many features a row, and float64 products of rows beat float32 tiles; some GPUs are slow at it.
WIDE = {"cpu": 4, "cuda": 32}


def barlow_twins_loss(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    lambd: float = 5e-3,
    *,
    eps: float = 1e-5,
    group: Group = None,
) -> Tensor:
    """Barlow Twins: the cross-correlation of two views' features should be the identity.

    ``loss = Σ_i (1 − C_ii)² + lambd · Σ_{i≠j} C_ij²`` with ``C = Σ_n ẑ0_n ẑ1_nᵀ / N`` and
    ``ẑ = (z − mean z) / sqrt(var z + eps)``, mean and (biased) variance over the N rows. The matrix
    [D, D] is never kept: tiles of it give loss and gradient at once; where 2N ≤ D the smaller
    matrices [N, N] of products of rows do.

    Args:
        z0: embeddings of the first view, shape [N, D], N ≥ 2; float32, bfloat16, float16 or
            float64.
        z1: embeddings of the second view, same shape, dtype and device; row i of both is one
            sample.
        lambd: weight of the off-diagonal terms; 0.0051 in the authors' code.
        eps: positive, added to the variances; a feature that is constant counts as 0.
        group: a process group, or True for the default one: means, variances and C are those of
            the batch of all its ranks; see :mod:`fastssl.distributed`.

    Returns:
        A float32 scalar (float64 for float64 inputs); products are taken in that dtype, sums over
        a feature in float64. NaN or infinite embeddings give NaN.

    Raises:
        TypeError: z0 and z1 are not floating-point tensors of one dtype, lambd or eps no numbers.
        ValueError: shapes or devices differ, the batch has fewer than two rows, eps is not
            positive, the ranks of a group disagree.

    Zbontar et al. 2021, https://arxiv.org/abs/2103.03230
    """
    ranks = agree(group, False, _check, z0=z0, z1=z1, eps=eps, lambd=lambd)
    n = _rows(z0, ranks)
    x, y = (_Standardise.apply(z.to(loss_dtype(z)), n, eps, ranks) for z in (z0, z1))  # ẑ/√N
    invariance = (1 - _column_sums(x * y, ranks)).square().sum()
    redundancy = _OffDiagonal.apply(x, y, n, ranks)
    return (invariance + lambd * redundancy).to(x.dtype)


def vicreg_loss(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    *,
    group: Group = None,
) -> Tensor:
    """VICReg: two views agree, every feature varies, and no two features vary together.

    ``loss = invariance · mean (z0 − z1)² + variance · (v(z0) + v(z1))/2 +
    covariance · (c(z0) + c(z1))``, with the hinge ``v(z) = (1/D) Σ_i max(0, 1 − sqrt(K_ii + eps))``
    and ``c(z) = (1/D) Σ_{i≠j} K_ij²`` of the covariance ``K = Σ_n (z_n − mean z)(z_n − mean z)ᵀ /
    (N − 1)``. K is never kept: tiles of one half of it give loss and gradient at once.

    Args:
        z0: embeddings of the first view, shape [N, D], N ≥ 2, not normalised; float32, bfloat16,
            float16 or float64.
        z1: embeddings of the second view, same shape, dtype and device; row i of both is one
            sample.
        invariance, variance, covariance: weights λ, μ and ν of the paper.
        eps: positive, added to the variances.
        group: a process group, or True for the default one: all three terms are those of the batch
            of all its ranks; see :mod:`fastssl.distributed`.

    Returns:
        A float32 scalar (float64 for float64 inputs); products are taken in that dtype, sums over
        a feature in float64. NaN or infinite embeddings give NaN.

    Raises:
        TypeError: z0 and z1 are not floating-point tensors of one dtype, a weight or eps no number.
        ValueError: shapes or devices differ, the batch has fewer than two rows, eps is not
            positive, the ranks of a group disagree.

    Bardes et al. 2022, https://arxiv.org/abs/2105.04906; halves as in the authors' code
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    ranks = agree(group, False, _check, z0=z0, z1=z1, eps=eps, **weights)
    n, d = _rows(z0, ranks), z0.shape[1]
    z0, z1 = (z.to(loss_dtype(z0)) for z in (z0, z1))
    loss = invariance * _column_sums((z0 - z1).square(), ranks).sum() / (n * d)
    for z in (z0, z1):
        x = _centred(z, n, ranks) / (n - 1) ** 0.5  # K = xᵀx
        deviation = (_column_sums(x.square(), ranks) + eps).sqrt()  # [D]
        loss = loss + variance * F.relu(1 - deviation).mean() / 2
        loss = loss + covariance * _OffDiagonal.apply(x, None, n, ranks) / d
    return loss.to(z0.dtype)


def _column_sums(x: Tensor, ranks: Local) -> Tensor:
    """Over the rows of all ranks, [N, D] to [D]; in float64 from the rank's sum on."""
    return ranks.sum(widened(x.sum(dim=0)))


def _centred(z: Tensor, n: int, ranks: Local) -> Tensor:
    """z [N, D] less the mean over the n rows of all ranks."""
    return z - (_column_sums(z, ranks) / n).to(z.dtype)


class _Standardise(torch.autograd.Function):
    """``(z − mean)/sqrt(n·(var + eps))`` over the n rows of all ranks: features of length 1 at
    most. By hand, as each more pass over [N, D] shows beside the products."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, n: int, eps: float, ranks: Local) -> Tensor:
        x = _centred(z, n, ranks)
        scale = (_column_sums(x.square(), ranks) + n * eps).rsqrt().to(x.dtype)  # [D]
        x = x.mul_(scale)
        ctx.n, ctx.ranks = n, ranks
        ctx.save_for_backward(x, scale)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        along = _column_sums(d_x * x, ctx.ranks).to(x.dtype)  # [D]
        d_z = torch.addcmul(d_x, x, along, value=-1)
        d_z.sub_((_column_sums(d_x, ctx.ranks) / ctx.n).to(x.dtype)).mul_(scale)
        return d_z, None, None, None


class _OffDiagonal(torch.autograd.Function):
    """``Σ_{i≠j} C_ij²`` of ``C = XᵀY`` over the rows of all ranks, for X, Y [N, D]; Y = None: X.

    The gradient is made with the value, so that nothing of size [D, D] or [N, N] is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, n: int, ranks: Local) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ratio = x.shape[1] / n
            if y is not None:
                form = _products_of_rows if ratio >= 2 else _tiles
                value, *gradients = form(x, y, ranks)
            elif ratio >= WIDE.get(x.device.type, float("inf")):
                value, gradient = _products_of_rows(widened(x), None, ranks)
                gradients = [gradient.to(x.dtype)]
            else:
                value, *gradients = _symmetric_tiles(x, ranks)
        ctx.ranks = ranks
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, ...]:
        d_value = ctx.ranks.sum(d_value)  # every rank's value depends on this one's rows
        gradients = [d * d_value.to(d.dtype) for d in ctx.saved_tensors]
        return *gradients, *[None] * (4 - len(gradients))


def _tiles(x: Tensor, y: Tensor, ranks: Local) -> tuple[Tensor, Tensor, Tensor]:
    """The value, and the gradients of X and Y, from columns of C."""
    value: Any = 0
    d_x, d_y = torch.zeros_like(x), torch.empty_like(y)
    for start in range(0, x.shape[1], TILE):
        tile = slice(start, start + TILE)
        c = ranks.sum(x.T @ y[:, tile])  # [D, TILE]
        c[tile].diagonal().zero_()
        value = value + _sum_of_squares(c)
        d_x.addmm_(y[:, tile], c.T, alpha=2)
        d_y[:, tile] = x @ c
    return value, d_x, 2 * d_y


def _symmetric_tiles(x: Tensor, ranks: Local) -> tuple[Tensor, Tensor]:
    """The same for Y = X, where C is symmetric: from one half of it."""
    value: Any = 0
    d_x = torch.zeros_like(x)
    for start in range(0, x.shape[1], TILE):
        tile, end = slice(start, start + TILE), min(start + TILE, x.shape[1])
        c = ranks.sum(x[:, :end].T @ x[:, tile])  # [end, TILE], with C's diagonal in the last rows
        c[tile].diagonal().zero_()
        value = value + 2 * _sum_of_squares(c[:start]) + _sum_of_squares(c[start:])
        d_x[:, tile].addmm_(x[:, :end], c, alpha=4)
        d_x[:, :start].addmm_(x[:, tile], c[:start].T, alpha=4)
    return value, d_x


def _products_of_rows(x: Tensor, y: Tensor | None, ranks: Local) -> tuple[Tensor, ...]:
    """The value and gradients, from products of rows: ``Σ_ij C_ij² = Σ_ab (x_a·x_b)(y_a·y_b)``.

    Of that sum the diagonal ``Σ_i C_ii²`` is taken off. Where features have length 1 at most, and
    are twice as many as rows, it is about half of the sum at most, and costs no digits. Features
    of very different lengths may leave little of the sum, and need float64.
    """
    every_x = every_y = ranks.gather(x)
    products_x = products_y = x @ every_x.T  # [N, N], of this rank's rows with all
    if y is not None:
        every_y = ranks.gather(y)
        products_y = y @ every_y.T
    other = x if y is None else y
    diagonal = _column_sums(x * other, ranks)  # [D]
    total = ranks.sum(widened((products_x * products_y).sum(dim=1)).sum())
    value = total - diagonal.square().sum()
    diagonal = diagonal.to(x.dtype)
    d_x = 2 * (products_y @ every_x - diagonal * other)
    if y is None:
        return value, 2 * d_x
    return value, d_x, 2 * (products_x @ every_y - diagonal * x)


def _sum_of_squares(c: Tensor) -> Tensor:
    """Of all entries; in float64 from a row's on."""
    return widened(torch.linalg.vector_norm(c, dim=1)).square().sum()


def _rows(z: Tensor, ranks: Local) -> int:
    """Of all ranks."""
    n = sum(ranks.samples) if isinstance(ranks, Ranks) else len(z)
    if n < 2:
        raise ValueError("z0 and z1 must have at least two rows, for a variance; they have one")
    return n


def _check(z0: Tensor, z1: Tensor, eps: float, **weights: float) -> None:
    check_alike(z0=z0, z1=z1)
    for name, value in {"eps": eps, **weights}.items():
        check_scalar(name, value, z0.device)
    if not eps > 0:
        raise ValueError(f"eps must be positive, not {eps}")
