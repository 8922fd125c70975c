"""Random numbers that are a function of what they are for: nothing to store, nothing to restore."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def mix(*words: int) -> int:
    """One 32-bit seed from several integers: the same on every machine, and well mixed."""
    seed = 0
    for word in words:
        seed = int(_hash(torch.tensor((seed ^ word) & MASK))) + 0x9E3779B9
    return seed & MASK


def uniform(seed: int, indices: Tensor, slots: int) -> Tensor:
    """Numbers in [0, 1), each a function of (seed, index, slot).

    Args:
        seed: any integer; its low 32 bits count.
        indices: int64, shape [B]: which sample each row is for.
        slots: S, numbers a sample.

    Returns:
        float32, shape [B, S], on the device of ``indices``; the same on every device.
    """
    rows = _hash((indices & MASK) ^ mix(seed))  # [B]
    columns = torch.arange(1, slots + 1, device=indices.device) * 0x9E3779B9  # [S]
    bits = _hash(rows[:, None] ^ (columns & MASK))  # [B, S], 32 bits
    return (bits >> 8).float() / 2**24


def _hash(x: Tensor) -> Tensor:
    """The 32-bit mixer "lowbias32" (Wellons 2018) in int64, whose products cannot overflow."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK  # wraps at 64 bits: its low 32 are still exact
    return x ^ (x >> 16)
