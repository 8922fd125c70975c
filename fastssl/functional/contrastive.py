"""Contrastive losses: each a formula over ``similarity_lse``."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.ops import similarity_lse

Reduction = Literal["mean", "sum", "none"]


def nt_xent(
    z0: Tensor,  # [N, D]
    z1: Tensor,  # [N, D]
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Normalised temperature-scaled cross entropy over two views of N samples.

    ``loss_i = −log( e^{s_ip} / Σ_{j≠i} e^{s_ij} )`` with ``s_ij = cos(z_i, z_j) / temperature``
    and p the other view of i, for each of the 2N rows. It is computed as
    ``softplus(log Σ_{j≠i,p} e^{s_ij} − s_ip)``, the same number, which keeps its digits (and its
    gradient's) when the positive dominates. The [2N, 2N] matrix is never written.

    Args:
        z0: embeddings of the first view, shape [N, D]; float32, bfloat16 or float16.
        z1: embeddings of the second view, same shape, dtype and device; row i of both is one
            sample.
        temperature: positive float, or a 0-dim tensor, which may require grad.
        normalize: use cosine similarity; False: plain dot products. A zero vector is similar
            to nothing and receives no gradient.
        reduction: "mean" over the 2N rows, "sum", or "none" for shape [2N], rows of z0 first.

    Returns:
        float32 (float64 for float64 inputs): a scalar, or [2N]. With N = 1 there is no
        negative and the loss is 0. NaN or infinite embeddings give NaN, as does a
        non-positive temperature tensor on a device (reading it would wait for the device).

    Raises:
        TypeError: z0 and z1 are not floating-point tensors of one dtype.
        ValueError: shapes or devices differ, the batch is empty, the temperature is not
            positive, the reduction is unknown.

    SimCLR, Chen et al. 2020, https://arxiv.org/abs/2002.05709
    """
    _check_views(z0, z1)
    n = z0.shape[0]
    lse, positive = similarity_lse(
        torch.cat([z0, z1]),  # [2N, D]
        scale=inverse_temperature(temperature),
        normalize=normalize,
        self_offset=0,
        pair_offset=n,
        exclude_pair=True,
    )
    loss = F.softplus(lse - positive)  # [2N]
    return reduce(loss, reduction).to(torch.float64 if z0.dtype == torch.float64 else torch.float32)


def inverse_temperature(temperature: float | Tensor) -> float | Tensor:
    """1/temperature, checked where that costs no wait for a device."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0 or temperature == float("inf"):
            raise ValueError(f"temperature must be positive and finite, not {temperature}")
        return 1.0 / temperature
    if temperature.dim() != 0 or not temperature.dtype.is_floating_point:
        raise ValueError(
            f"temperature must be a float or a 0-dim floating-point tensor, "
            f"not {temperature.dtype} of shape {list(temperature.shape)}"
        )
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling() and temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature.item()}")
    return torch.where(temperature > 0, 1.0 / temperature, float("nan"))


def reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    """The mean, the sum, or the rows themselves."""
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f'reduction must be "mean", "sum" or "none", not {reduction!r}')


def _check_views(z0: Tensor, z1: Tensor) -> None:
    for name, z in (("z0", z0), ("z1", z1)):
        if not isinstance(z, Tensor) or not z.dtype.is_floating_point:
            got = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"{name} must be a floating-point tensor, not {got}")
    if z0.dtype != z1.dtype:
        raise TypeError(f"z0 and z1 must have one dtype, not {z0.dtype} and {z1.dtype}")
    if z0.device != z1.device:
        raise ValueError(f"z0 and z1 must be on one device, not {z0.device} and {z1.device}")
    if z0.dim() != 2 or z0.shape != z1.shape:
        raise ValueError(
            f"z0 and z1 must have one shape [N, D], not {list(z0.shape)} and {list(z1.shape)}"
        )
    if 0 in z0.shape:
        raise ValueError(f"z0 and z1 must hold at least one row and feature, not {list(z0.shape)}")
