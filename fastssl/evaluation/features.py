"""Frozen features of images, from an encoder or from the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Raw pixels of larger images are averaged down to this side: more would only slow the probe.
RAW_SIDE = 32


def extract_features(
    encoder: nn.Module,
    images: Tensor,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    advance: Callable[[int], object] | None = None,
) -> Tensor:
    """Run a frozen encoder over images, in evaluation mode and without gradients.

    Args:
        encoder: maps float [B, C, H', W'] to [B, D] or to anything that flattens to it. Its mode
            (training or evaluation) and its device are left as they were found.
        images: uint8 [N, C, H, W], read as k/255, or floating in [0, 1].
        transform: maps a float32 batch in [0, 1] on ``device`` to the encoder's input: resizing,
            normalisation. None: the batch goes in as it is.
        batch_size: images a forward.
        device: where the encoder already is.
        advance: called with the number of images after each batch, for a progress bar.

    Returns:
        float32 [N, D] on the CPU.

    Raises:
        ValueError: images of a wrong shape or dtype, none at all, or features that are not finite.
    """
    check_images(images)
    features = []
    with evaluating(encoder), torch.inference_mode():
        for batch in images.split(batch_size):
            x = as_float(batch.to(device))
            features.append(encoder(x if transform is None else transform(x)).flatten(1))
            if advance is not None:
                advance(len(batch))
    stacked = torch.cat(features).to("cpu", torch.float32)
    if not torch.isfinite(stacked).all():
        raise ValueError("the encoder's features hold NaN or infinity; nothing can be judged")
    return stacked


def raw_pixels(images: Tensor) -> Tensor:
    """The images themselves as features, float32 [N, C·H·W] in [0, 1].

    Images larger than 32 × 32 are averaged down to it first.

    Args:
        images: uint8 [N, C, H, W], read as k/255, or floating in [0, 1].

    Raises:
        ValueError: images of a wrong shape or dtype, or none at all.
    """
    check_images(images)
    side_h, side_w = (min(side, RAW_SIDE) for side in images.shape[2:])
    if (side_h, side_w) == tuple(images.shape[2:]):
        return as_float(images.cpu()).flatten(1)
    batches = (
        F.adaptive_avg_pool2d(as_float(b.cpu()), (side_h, side_w)) for b in images.split(256)
    )
    return torch.cat([batch.flatten(1) for batch in batches])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part's own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def as_float(images: Tensor) -> Tensor:
    """uint8 as k/255, floating as float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def check_images(images: Tensor) -> None:
    """uint8 or floating [N, C, H, W], N >= 1."""
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [N, C, H, W] with N >= 1, got {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8 or floating, got {images.dtype}")
