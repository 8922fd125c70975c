"""What the losses share: checks of their arguments, 1/temperature, similarities of single pairs,
reductions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastssl import reference as references
from fastssl.distributed import LOCAL, Local
from fastssl.ops import similarity_lse_loss
from fastssl.ops.checks import FLOATS, check_zero_dim
from fastssl.reference.similarity_lse import NORM_EPS, unit_rows

Reduction = Literal["mean", "sum", "none"]


def check_floating(**embeddings: object) -> None:
    """Tensors of a dtype that the ops take."""
    for name, z in embeddings.items():
        if not isinstance(z, Tensor) or z.dtype not in FLOATS:
            got = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(
                f"{name} must be a floating-point tensor (float32, bfloat16, float16 or float64), "
                f"not {got}"
            )


def check_companion(name: str, z: Tensor, first_name: str, first: Tensor) -> None:
    """A tensor of the dtype and on the device of ``first``."""
    check_floating(**{name: z})
    if z.dtype != first.dtype:
        raise TypeError(
            f"{first_name} and {name} must have one dtype, not {first.dtype} and {z.dtype}"
        )
    if z.device != first.device:
        raise ValueError(
            f"{first_name} and {name} must be on one device, not {first.device} and {z.device}"
        )


def check_alike(**embeddings: Tensor) -> None:
    """Floating-point tensors of one dtype, device and shape [N, D], neither of them zero."""
    check_floating(**embeddings)
    (first_name, first), *others = embeddings.items()
    for name, z in others:
        check_companion(name, z, first_name, first)
    names = " and ".join(embeddings)
    if first.dim() != 2 or any(z.shape != first.shape for _, z in others):
        shapes = " and ".join(str(list(z.shape)) for z in embeddings.values())
        raise ValueError(f"{names} must have one shape [N, D], not {shapes}")
    if 0 in first.shape:
        raise ValueError(f"{names} must hold at least one row and feature, not {list(first.shape)}")


def check_scalar(name: str, value: float | Tensor, device: torch.device) -> None:
    """A number, or a 0-dim floating-point tensor on ``device``."""
    if isinstance(value, Tensor):
        check_zero_dim(name, value)
        if value.device != device:
            raise ValueError(
                f"{name} must be on the features' device, {device}, not {value.device}"
            )
    elif not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a float or a 0-dim floating-point tensor, not {type(value).__name__}"
        )


def check_group_ids(name: str, ids: Tensor, shape: list[int], device: torch.device) -> None:
    """Integers of that shape on ``device``."""
    if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dtype.is_complex:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be a tensor of integers, not {got}")
    if list(ids.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, not {list(ids.shape)}")
    if ids.device != device:
        raise ValueError(f"{name} must be on the device {device}, not {ids.device}")


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """A positive number, or a 0-dim tensor, its value checked where that waits for no device."""
    if not isinstance(temperature, Tensor):
        if not temperature > 0 or temperature == float("inf"):
            raise ValueError(f"{name} must be positive and finite, not {temperature}")
        return
    check_zero_dim(name, temperature)
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling() and temperature <= 0:
        raise ValueError(f"{name} must be positive, not {temperature.item()}")


def inverse_temperature(temperature: float | Tensor) -> float | Tensor:
    """1/temperature, of a tensor in float64 (a rounding here is one of every logit); NaN where it
    is not positive."""
    if not isinstance(temperature, Tensor):
        return 1.0 / temperature
    return torch.where(temperature > 0, 1.0 / widened(temperature), float("nan"))


def group_rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    """For ids [M] a number in [0, M) for each row's group, and how many other rows it holds, [M].

    Sorting and searching rather than ``unique``: no shape depends on the data, nobody waits.
    """
    ids = ids.long()
    ordered = ids.sort().values
    first = torch.searchsorted(ordered, ids)
    return first, torch.searchsorted(ordered, ids, right=True) - first - 1


def widened(x: Tensor) -> Tensor:
    """In float64, or float32 on devices without it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """Of row i of both, [N, D] to [N], in float64; 0, without gradient, where a row is zero."""
    return (unit_rows(widened(x)) * unit_rows(widened(y))).sum(dim=1)


def similarities(x: Tensor, y: Tensor, normalize: bool) -> Tensor:
    """``x_a·y_b`` within each of N small groups, [N, A, D] and [N, B, D] to [N, A, B], in float64.

    ``normalize`` makes them cosines, by the rules of ``similarity_lse``.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = widened(x), widened(y)
        products = x @ y.mT
        if normalize:
            products = products * _inverse_norms(x) * _inverse_norms(y).mT
        return products


def _inverse_norms(x: Tensor) -> Tensor:
    """1/‖x‖ of the vectors x [..., D], as [..., 1]; 0, without gradient, where there is no
    direction."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    directed = ~(norm < NORM_EPS)  # a NaN norm must stay visible
    return torch.where(directed, 1.0 / torch.where(directed, norm, 1.0), 0.0)


def reduce(
    loss: Tensor, reduction: Reduction, counted: Tensor | None = None, *, ranks: Local
) -> Tensor:
    """Over all ranks the mean (of the ``counted`` rows; 0 if there are none) or the sum; or the
    rows themselves."""
    if reduction == "mean":
        return ranks.mean(loss, counted)
    if reduction == "sum":
        return ranks.sum(loss.sum())
    if reduction == "none":
        return loss
    raise ValueError(f'reduction must be "mean", "sum" or "none", not {reduction!r}')


def pair_loss(
    pair: Tensor, *lse: Tensor, reduction: Reduction = "mean", ranks: Local, like: Tensor
) -> Tensor:
    """``softplus(lse_i − pair_i)``, the mean over several ``lse``, reduced over the rows of all
    ranks; in the dtype of losses of embeddings ``like`` these."""
    if ranks is LOCAL and reduction == "mean" and loss_dtype(like) == torch.float32:
        return similarity_lse_loss(pair, *lse)
    rows = references.similarity_lse_loss(pair, *lse)
    return reduce(rows, reduction, ranks=ranks).to(loss_dtype(like))


def loss_dtype(z: Tensor) -> torch.dtype:
    """float32, and float64 for float64 inputs."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32
