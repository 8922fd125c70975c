"""What the ops ask of their arguments."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_rows(**tensors: object) -> None:
    """Floating-point rows [*, D], at least one each; the others like the first."""
    (first_name, first), *others = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"{name} must be a float32, bfloat16, float16 or float64 tensor, not {got}"
            )
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ValueError(
                f"{name} must have shape [rows, features], neither zero, not {list(tensor.shape)}"
            )
    assert isinstance(first, Tensor)
    for name, tensor in others:
        assert isinstance(tensor, Tensor)
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{name} must have the dtype of {first_name}, {first.dtype}, not {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {first_name}, {first.device}, not {tensor.device}"
            )
        if tensor.shape[1] != first.shape[1]:
            raise ValueError(
                f"{name} must have the width of {first_name}, {first.shape[1]}, "
                f"not {tensor.shape[1]}"
            )


def check_seed(seed: object) -> int:
    """A seed as Python's whole number, 0 to 2^64 − 1."""
    if not isinstance(seed, Integral):
        raise TypeError(f"seed must be a whole number, not {seed!r}")
    whole = int(seed)
    if not 0 <= whole < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), not {seed}")
    return whole


def check_size(size: object) -> None:
    """Height and width of a view, in pixels."""
    pair = isinstance(size, tuple | list) and len(size) == 2
    if not pair or not all(isinstance(n, int) and n > 0 for n in size):  # type: ignore[attr-defined]
        raise ValueError(f"size must be a height and a width, both positive, not {size!r}")


def check_zero_dim(name: str, tensor: Tensor) -> None:
    """A tensor in place of a float."""
    if tensor.dim() != 0 or not tensor.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a float or a 0-dim floating-point tensor, "
            f"not {tensor.dtype} of shape {list(tensor.shape)}"
        )


def check_matrix(x, y, scale, self_offset, pair_offset, exclude_pair) -> None:
    """Rows, columns (None: the rows), scale and excluded entries of a matrix of similarities."""
    check_rows(**({"x": x} if y is None else {"x": x, "y": y}))
    if isinstance(scale, Tensor):
        check_zero_dim("scale", scale)
        if scale.device != x.device:
            raise ValueError(f"scale must be on the device of x, {x.device}, not {scale.device}")
    columns = (x if y is None else y).shape[0]
    for name, offset in (("self_offset", self_offset), ("pair_offset", pair_offset)):
        if offset is not None and not 0 <= offset < columns:
            raise ValueError(f"{name} must lie in [0, {columns}), not {offset}")
    if exclude_pair and pair_offset is None:
        raise ValueError("exclude_pair needs a pair_offset")
    if y is None:
        # The symmetric path needs a symmetric set of excluded entries.
        excluded = [self_offset] if self_offset is not None else []
        excluded += [pair_offset] if exclude_pair else []
        for offset in excluded:
            if 2 * offset % columns:
                raise ValueError(
                    f"with y=None an excluded offset must be 0 or half the rows, not {offset} of "
                    f"{columns}; pass y=x for any other"
                )
