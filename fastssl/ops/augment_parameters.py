"""``augment_parameters``: what is drawn for a view of each image."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_seed, check_size
from fastssl.ops.library import define
from fastssl.reference.augment_parameters import Chances, Column


def augment_parameters(
    sizes: Tensor,  # [B, 2]
    samples: Tensor,  # [B]
    seed: int,
    view: int,
    size: tuple[int, int],
    chances: Chances,
) -> Tensor:
    """Parameters of a view of each sample, as torchvision distributes them.

    A row is a function of the seed, the sample, the view, the image's height and width, the view's
    and the chances; it is the same to the bit on every backend and device.

    Args:
        sizes: int64 [B, 2], heights and widths of the images.
        samples: int64 [B], each image's number in its set.
        seed: 0 to 2^64 − 1.
        view: which one it is, 0 to 2^32 − 1.
        size: its height and width, in pixels.
        chances: probabilities and ranges.

    Returns:
        float32 [B, 19], whose columns :class:`fastssl.augment.Column` names, for
        :func:`fastssl.ops.augment`.

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: sizes or samples of another dtype or shape, on different devices, a seed or a
            view outside its range, a size that is not positive.
        BackendError: a backend was asked for that cannot serve these tensors.
    """
    if samples.dtype != torch.int64 or samples.dim() != 1:
        raise ValueError(
            f"samples must be int64 of shape [B], not {samples.dtype} of {list(samples.shape)}"
        )
    if sizes.dtype != torch.int64 or list(sizes.shape) != [len(samples), 2]:
        raise ValueError(
            f"sizes must be int64 of shape [{len(samples)}, 2], "
            f"not {sizes.dtype} of {list(sizes.shape)}"
        )
    if sizes.device != samples.device:
        raise ValueError(f"sizes must be on the samples' device, {samples.device}")
    seed = check_seed(seed)
    if not 0 <= view < 2**32:
        raise ValueError(f"view must lie in [0, 2^32), not {view}")
    check_size(size)
    backend = backends.select("augment_parameters", samples.device.type)
    run = _reference_fwd if backend == "reference" else backends.raw(_NAME, backend)
    signed = seed - 2**64 if seed >= 2**63 else seed  # as the 64 bits of an int
    # torch.compile looks through a cache, and warns
    numbers = _numbers(chances) if torch.compiler.is_compiling() else _known_numbers(chances)
    return run(sizes, samples, signed, view, *size, numbers)


_NAME = "augment_parameters_fwd"
_OWN = (0.0, math.inf)  # the ratio that stands for None


def _numbers(chances: Chances) -> list[float]:
    """Of every field in turn."""
    fields = chances._replace(ratio=chances.ratio or _OWN)
    numbers: list[float] = []
    for field in fields:
        numbers += field if isinstance(field, tuple) else [float(field or 0)]
    return numbers


_known_numbers = lru_cache(_numbers)


def _chances(numbers: list[float]) -> Chances:
    rest = iter(numbers)
    pairs = {name for name, value in Chances()._asdict().items() if isinstance(value, tuple)}
    fields = {
        name: (next(rest), next(rest)) if name in pairs | {"ratio"} else next(rest)
        for name in Chances._fields
    }
    chances = Chances(**fields)  # type: ignore[arg-type]
    return chances._replace(ratio=None) if chances.ratio == _OWN else chances


def _fwd_fake(sizes, samples, seed, view, height, width, chances):
    return samples.new_empty((samples.shape[0], len(Column)), dtype=torch.float32)


def _reference_fwd(sizes, samples, seed, view, height, width, chances):
    return references.augment_parameters(
        sizes, samples, seed % 2**64, view, (height, width), _chances(chances)
    )


define(
    f"{_NAME}(Tensor sizes, Tensor samples, int seed, int view, int height, int width, "
    "float[] chances) -> Tensor",
    fake=_fwd_fake,
    reference=_reference_fwd,
)
backends.register("augment_parameters", "native")
