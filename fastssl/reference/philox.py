"""Random numbers that are a function of what they are for, the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # what the two words of the key grow by in a round


def philox(seed: int, samples: Tensor, view: int, slots: int) -> Tensor:
    """Philox4x32-10 with ``seed`` as its key and (slot // 4, view, sample) as its counter.

    Args:
        seed: 0 to 2^64 − 1.
        samples: int64, shape [B].
        view: 0 to 2^32 − 1.
        slots: S, numbers wanted for each sample.

    Returns:
        int64, shape [B, S], each 32 random bits, on the device of ``samples``. A number depends on
        its own seed, sample, view and slot only.

    Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405
    """
    groups = torch.arange(-(-slots // 4), device=samples.device)  # [G]
    shape = (len(samples), len(groups))
    words = [
        groups.expand(shape),
        torch.full(shape, view, device=samples.device),
        (samples & LOW)[:, None].expand(shape),
        (samples >> 32 & LOW)[:, None].expand(shape),
    ]
    key = [seed & LOW, seed >> 32]
    for _ in range(ROUNDS):
        # Products wrap at 64 bits, all of which count: the sign is a bit like the others.
        first, second = words[0] * MULTIPLIERS[0], words[2] * MULTIPLIERS[1]
        words = [
            (second >> 32 & LOW) ^ words[1] ^ key[0],
            second & LOW,
            (first >> 32 & LOW) ^ words[3] ^ key[1],
            first & LOW,
        ]
        key = [k + w & LOW for k, w in zip(key, WEYL, strict=True)]
    return torch.stack(words, dim=2).flatten(1)[:, :slots]  # [B, S]


def uniform(seed: int, samples: Tensor, view: int, slots: int) -> Tensor:
    """The same as numbers in [0, 1), multiples of 2^-32: float64, shape [B, S]."""
    return philox(seed, samples, view, slots).double() / 2.0**32
