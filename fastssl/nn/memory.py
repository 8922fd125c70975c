"""What contrastive methods remember: a queue of recent keys, a bank with a row for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.distributed import Group, agree
from fastssl.reference.similarity_lse import NORM_EPS


class MemoryQueue(nn.Module):
    """The newest K keys, first in first out: MoCo's dictionary, NNCLR's support set.

    It begins with random unit rows, as MoCo's does: to a loss they are negatives like any others,
    gone after K keys (with labels, theirs is −1). The rows lie in a ring; nothing is ever moved,
    cloned or waited for, so ``enqueue`` may stand inside a CUDA graph or a compiled function.

    A loss reads ``rows`` as they are: enqueue a step's keys after its loss, or they are negatives
    of their own queries.

    Args:
        size: K.
        dim: D.
        normalize: store unit vectors; a key shorter than 1e-12 is stored as zero.
        labels: keep an integer with each row: a class, or a sample's number.
        dtype: of the rows.

    Attributes:
        rows: [K, D], persistent.
        labels: int64 [K], persistent; None where none are kept.
        position: int64, 0-dim, on the device, persistent: where the next key goes.

    Raises:
        ValueError: size or dim is not positive.

    He et al. 2020, https://arxiv.org/abs/1911.05722
    """

    rows: Tensor
    labels: Tensor | None
    position: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        normalize: bool = True,
        labels: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.normalize = normalize
        self.register_buffer("rows", _random_unit_rows("size", size, dim, dtype))
        self.register_buffer("labels", torch.full((size,), -1) if labels else None)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor | None = None, group: Group = None) -> None:
        """Put keys in the place of the oldest rows.

        Args:
            keys: any floating dtype, shape [B, D]; of more than K, the last K stay.
            labels: int64, shape [B]; where the queue keeps labels, and only there.
            group: the keys of all its ranks enter, in the order of the ranks, so that the queue
                stays the same on each of them. B may differ between ranks. The ranks' sizes must
                be known first: with a group, and only then, this waits for the device.

        Raises:
            TypeError, ValueError: keys or labels of a wrong dtype, shape or device; with a group,
                on every rank if on one.
        """
        ranks = agree(group, False, self._check, keys=keys, labels=labels)
        keys = ranks.gather(self._as_stored(keys))
        count, size = len(keys), len(self.rows)
        kept = min(count, size)
        order = torch.arange(count - kept, count + 1, device=keys.device)
        places, after = ((self.position + order) % size).split_with_sizes([kept, 1])
        self.rows.index_copy_(0, places, keys[count - kept :])  # places [kept], all different
        if self.labels is not None and labels is not None:
            labels = ranks.gather(labels)
            self.labels.index_copy_(0, places, labels[count - kept :])
        self.position.copy_(after[0])

    def _as_stored(self, keys: Tensor) -> Tensor:
        return _unit_rows(keys, self.rows.dtype) if self.normalize else keys.to(self.rows.dtype)

    def _check(self, keys: Tensor, labels: Tensor | None) -> None:
        _check_rows("keys", keys, self.rows)
        if self.labels is not None:
            _check_integers("labels", labels, keys)
        elif labels is not None:
            raise ValueError("labels: this queue keeps none; MemoryQueue(..., labels=True) does")

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"{size}, {dim}, normalize={self.normalize}, labels={self.labels is not None}"


class MemoryBank(nn.Module):
    """A unit row for each of N samples, which follows what the encoder makes of the sample.

    ``v_i ← normalise(m·v_i + (1 − m)·f_i)``, from random unit rows.

    Args:
        num_samples: N.
        dim: D.
        momentum: m, in [0, 1).
        dtype: of the rows.

    Attributes:
        rows: [N, D], persistent.

    Raises:
        ValueError: num_samples or dim is not positive, momentum lies outside [0, 1).

    NPID, Wu et al. 2018, https://arxiv.org/abs/1805.01978
    """

    rows: Tensor

    def __init__(
        self,
        num_samples: int,
        dim: int,
        momentum: float = 0.5,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {momentum}")
        self.momentum = momentum
        self.register_buffer("rows", _random_unit_rows("num_samples", num_samples, dim, dtype))

    def forward(self, indices: Tensor) -> Tensor:
        """The rows of these samples: a copy, shape [B, D]; indices int64, shape [B]."""
        return self.rows[indices]

    @torch.no_grad()
    def sample(
        self, count: int, *, exclude: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rows of samples drawn evenly, with replacement, on the device of the bank.

        Args:
            count: how many.
            exclude: int64, shape [B], all different: samples not to draw.
            generator: of the bank's device; None: torch's own.

        Returns:
            A copy, shape [count, D].

        Raises:
            ValueError: nothing is left to draw from.
        """
        device = self.rows.device
        excluded = 0 if exclude is None else len(exclude)
        left = len(self.rows) - excluded
        if left < 1:
            raise ValueError(f"no sample is left: {excluded} of {len(self.rows)} are excluded")
        drawn = torch.randint(left, (count,), device=device, generator=generator)
        if exclude is not None:
            # The r-th sample that is left stands behind as many excluded ones as have at most r
            # samples left before them.
            before = exclude.sort().values - torch.arange(excluded, device=device)
            drawn = drawn + torch.searchsorted(before, drawn, right=True)
        return self.rows[drawn]

    @torch.no_grad()
    def update(self, indices: Tensor, features: Tensor, group: Group = None) -> None:
        """Move the rows of these samples towards their features, which count as unit vectors.

        Args:
            indices: int64, shape [B], all different: which samples.
            features: any floating dtype, shape [B, D].
            group: the samples of all its ranks, as in :meth:`MemoryQueue.enqueue`.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or device; with a group, on every rank if
                on one.
        """
        ranks = agree(group, False, self._check, features=features, indices=indices)
        features = ranks.gather(_unit_rows(features, self.rows.dtype))
        indices = ranks.gather(indices)
        wide = torch.promote_types(self.rows.dtype, torch.float32)
        old = self.rows[indices].to(wide)  # [B, D]
        moved = torch.lerp(features.to(wide), old, self.momentum)
        self.rows.index_copy_(0, indices, _unit_rows(moved, self.rows.dtype))

    def _check(self, features: Tensor, indices: Tensor) -> None:
        _check_rows("features", features, self.rows)
        _check_integers("indices", indices, features)

    def extra_repr(self) -> str:
        samples, dim = self.rows.shape
        return f"{samples}, {dim}, momentum={self.momentum}"


def _random_unit_rows(name: str, count: int, dim: int, dtype: torch.dtype) -> Tensor:
    for what, number in ((name, count), ("dim", dim)):
        if number < 1:
            raise ValueError(f"{what} must be positive, not {number}")
    return F.normalize(torch.randn(count, dim)).to(dtype)


def _unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows divided by their norms in float32, or in float64 where that is one of the dtypes; zero
    where there is no direction, and without gradient."""
    wide = torch.promote_types(torch.promote_types(x.dtype, dtype), torch.float32)
    x = x.to(wide)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return (x / norm.masked_fill_(norm < NORM_EPS, float("inf"))).to(dtype)


def _check_rows(name: str, x: Tensor, rows: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor, not {got}")
    if x.dim() != 2 or x.shape[1] != rows.shape[1]:
        raise ValueError(f"{name} must have shape [B, {rows.shape[1]}], not {list(x.shape)}")
    if x.device != rows.device:
        raise ValueError(f"{name} must be on the device of the rows, {rows.device}, not {x.device}")


def _check_integers(name: str, x: Tensor | None, rows: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.int64:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be an int64 tensor, not {got}")
    if x.shape != rows.shape[:1]:
        raise ValueError(f"{name} must have shape [{len(rows)}], not {list(x.shape)}")
    if x.device != rows.device:
        raise ValueError(f"{name} must be on {rows.device}, not {x.device}")
