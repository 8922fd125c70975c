"""Permutations that are far from each other."""

from __future__ import annotations

from functools import lru_cache
from math import factorial

import torch
from torch import Tensor

CELLS = 9  # of more, all permutations are too many to list


@lru_cache
def far_permutations(count: int, cells: int = 9) -> Tensor:
    """Permutations with large Hamming distances (places in which two differ), greedily.

    From the identity on, each next one is, among all, the one whose least distance to those before
    is largest; of equals, that with the largest sum of distances; of equals, the first in
    lexicographic order. (Noroozi and Favaro maximise the sum alone: means are alike, but two of
    their permutations may differ in two places only.) The first of a larger set are a smaller one.
    It takes a third of a second for 100, once in a process.

    Args:
        count: P, 1 to ``cells!``.
        cells: n, 1 to 9.

    Returns:
        int64, shape [P, n]. It is kept for the next call: not to be written to.

    Raises:
        ValueError: count or cells outside their range.

    Noroozi and Favaro 2016, https://arxiv.org/abs/1603.09246
    """
    if not 1 <= cells <= CELLS:
        raise ValueError(f"cells must lie in [1, {CELLS}], not {cells}")
    if not 1 <= count <= factorial(cells):
        raise ValueError(f"count must lie in [1, {factorial(cells)}], all there are, not {count}")
    every = _all_permutations(cells)  # [n!, n]
    columns = every.T.contiguous()
    least = torch.full((len(every),), cells, dtype=torch.int32)
    total = torch.zeros(len(every), dtype=torch.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = (columns != every[chosen[-1]][:, None]).sum(dim=0, dtype=torch.uint8)
        torch.minimum(least, distance, out=least)
        total += distance  # less than (cells + 1) · count
        chosen.append(int((least * ((cells + 1) * count) + total).argmax()))  # the first of equals
    return every[torch.tensor(chosen)].long()


def _all_permutations(n: int) -> Tensor:
    """uint8 [n!, n], in lexicographic order."""
    rows = torch.zeros(1, 1, dtype=torch.uint8)
    for k in range(2, n + 1):  # a first element, then the others' permutations
        heads = torch.arange(k, dtype=torch.uint8).repeat_interleave(len(rows))[:, None]
        tails = rows.repeat(k, 1)
        rows = torch.cat([heads, tails + (tails >= heads).to(torch.uint8)], dim=1)
    return rows
