"""NT-Xent with a term for each positive pair, as pytorch-metric-learning has it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.functional.common import similarities
from fastssl.ops import similarity_lse, similarity_lse_both
from fastssl.reference.similarity_lse import masked_lse

# Rows by columns up to which similarities are computed at once rather than streamed.
BLOCK = 128 * 128


Sizes = list[tuple[int, int]]  # rows and columns of each label


@dataclass
class Pairs:
    """Which of the pairs of M rows and K columns are positive, by their labels.

    Attributes:
        x_ids, y_ids: labels of rows [M] and columns [K], as numbers from 0.
        sizes: each label's rows and columns, read on the host.
        own_offset: column ``(i + own_offset) mod K`` is row i itself; None: none is.
    """

    x_ids: Tensor
    y_ids: Tensor
    sizes: Sizes
    own_offset: int | None

    @classmethod
    def by_label(cls, x_labels: Tensor, y_labels: Tensor, own_offset: int | None) -> Pairs:
        """Equal labels, integers or floats on one device, make a positive pair."""
        ids = torch.unique(torch.cat([x_labels, y_labels]), return_inverse=True)[1]
        x_ids, y_ids = ids.split([len(x_labels), len(y_labels)])
        counts = [torch.bincount(i, minlength=len(ids)).tolist() for i in (x_ids, y_ids)]
        sizes = [(a, b) for a, b in zip(*counts, strict=True) if a or b]
        return cls(x_ids, y_ids, sizes, own_offset)

    def positives(self) -> int:
        """How many."""
        own = 0 if self.own_offset is None else len(self.x_ids)
        return sum(a * b for a, b in self.sizes) - own

    def negatives(self) -> int:
        """How many."""
        return len(self.x_ids) * len(self.y_ids) - sum(a * b for a, b in self.sizes)


def positive_pair_nt_xent(
    x: Tensor,  # [M, D]
    y: Tensor | None,  # [K, D]
    pairs: Pairs,
    temperature: float,
    *,
    normalize: bool,
) -> Tensor:
    """The mean over positive pairs (i, p) of ``−log( e^{s_ip} / (e^{s_ip} + Σ_n e^{s_in}) )``.

    p runs over the columns with row i's label, n over all others. It is computed as
    ``softplus(log Σ_n e^{s_in} − s_ip)``, with the sum taken over negatives only: as a difference
    of sums over all columns and over the positives it would lose its digits where positives
    dominate. Sorted by label, the negatives of the first labels' rows among the last labels'
    columns, and the other way around, are a plain block each, streamed by ``similarity_lse``;
    what remains are the two halves, each halved in turn, until one label is left or a block small
    enough to write. Memory grows with the rows, and by a float64 for each positive pair.

    Args:
        x: rows.
        y: columns; None: the rows.
        pairs: their positives; at least one.
        temperature: positive float.
        normalize: cosine similarity; False: dot products.

    Returns:
        A float64 scalar.
    """
    x_order, y_order = pairs.x_ids.argsort(stable=True), pairs.y_ids.argsort(stable=True)
    own = None
    if pairs.own_offset is not None:
        own = y_order.argsort()[(x_order + pairs.own_offset) % len(y_order)]  # [M]
    x = x[x_order]
    y = x if y is None else y[y_order]
    scale = 1 / temperature
    lse = _negatives_lse(x, y, pairs.sizes, scale, normalize)  # [M]
    total = lse.new_zeros(())
    for rows, columns in _alike(pairs.sizes, x.device):  # [G, A], [G, B]
        logits = scale * similarities(x[rows], y[columns], normalize)  # [G, A, B]
        terms = F.softplus(lse[rows][:, :, None] - logits)
        if own is not None:
            itself = columns[:, None, :] == own[rows][:, :, None]
            terms = torch.where(itself, 0.0, terms)
        total = total + terms.sum()
    return total / pairs.positives()


def _negatives_lse(x: Tensor, y: Tensor, sizes: Sizes, scale: float, normalize: bool) -> Tensor:
    """Log-sum-exp of each row over the columns of other labels, [M]; −inf where there are none.

    ``sizes`` has the rows and the columns of each label, in the order in which they lie.
    """
    if len(sizes) == 1 or not len(x) or not len(y):
        return torch.full((len(x),), float("-inf"), dtype=torch.float64, device=x.device)
    if len(x) * len(y) <= BLOCK:
        logits = scale * similarities(x[None], y[None], normalize)[0]  # [M, K]
        labels = torch.arange(len(sizes), device=x.device)
        x_labels, y_labels = (
            labels.repeat_interleave(torch.tensor(counts, device=x.device))
            for counts in zip(*sizes, strict=True)
        )
        return masked_lse(logits, x_labels[:, None] == y_labels)

    k = _middle(sizes)
    (a, b), (rest_a, rest_b) = map(_totals, (sizes[:k], sizes[k:]))
    x0, x1 = x.split([a, rest_a])
    y0, y1 = (x0, x1) if y is x else y.split([b, rest_b])
    inner0 = _negatives_lse(x0, y0, sizes[:k], scale, normalize)
    inner1 = _negatives_lse(x1, y1, sizes[k:], scale, normalize)
    if y is x:
        cross0, _, cross1 = similarity_lse_both(x0, x1, scale, normalize=normalize)
        return torch.cat([torch.logaddexp(inner0, cross0), torch.logaddexp(inner1, cross1)])
    parts = []
    for rows, columns, inner in ((x0, y1, inner0), (x1, y0, inner1)):
        if len(rows) and len(columns):
            cross, _ = similarity_lse(rows, columns, scale, normalize=normalize)
            inner = torch.logaddexp(inner, cross)
        parts.append(inner)
    return torch.cat(parts)


def _middle(sizes: Sizes) -> int:
    """How many labels to take so that they hold half of the rows and columns, or nearly."""
    held = list(accumulate(a + b for a, b in sizes))
    return 1 + min(range(len(sizes) - 1), key=lambda i: abs(2 * held[i] - held[-1]))


def _totals(sizes: Sizes) -> tuple[int, int]:
    return sum(a for a, _ in sizes), sum(b for _, b in sizes)


def _alike(sizes: Sizes, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the rows [G, A] and columns [G, B] of labels alike in size, for each size."""
    starts = defaultdict(list)
    row = column = 0
    for a, b in sizes:
        if a and b:
            starts[a, b].append((row, column))
        row, column = row + a, column + b
    groups = []
    for (a, b), places in starts.items():
        first = torch.tensor(places, device=device)  # [G, 2]
        rows = first[:, :1] + torch.arange(a, device=device)
        columns = first[:, 1:] + torch.arange(b, device=device)
        groups.append((rows, columns))
    return groups
