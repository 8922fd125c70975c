"""The batch a loss is taken over: this process's rows, or those of a group of ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl.distributed.blocks import Blocks, Sum, gather
from fastssl.distributed.ring import lse_over_ring, softplus_over_ring
from fastssl.ops import similarity_lse, similarity_lse_both, similarity_softplus

Group = dist.ProcessGroup | bool | None
P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep torch.compile out. The compiler's own decorator imports it, which takes seconds."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def agree(group: Group, ring: bool, check: Callable[..., None], **inputs: Any) -> Local:
    """Check a loss's inputs on every rank, before any rank waits for another.

    Args:
        group: the ranks whose rows make up the batch; True: the default process group, or this
            process alone where none was started; None or False: this process alone.
        ring: pass columns around a ring; False: gather them.
        check: takes ``inputs`` and raises where one is wrong.
        **inputs: of the loss, by name: tensors, lists of them, or numbers. The first has a row for
            each of this rank's samples; numbers of rows are all that may differ between ranks.

    Returns:
        What computes the loss's ops over the whole batch.

    Raises:
        TypeError: ``group`` is no process group that this process is in.
        ValueError: on every rank, if an input is wrong on another, or if ranks differ in an input's
            dtype, width, kind of device or need of a gradient, in a number, or in ``ring``.
        Exception: what ``check`` raises, on the rank where it does.
    """
    if group is None or group is False or (group is True and not dist.is_initialized()):
        check(**inputs)
        return LOCAL
    return _agree(None if group is True else group, ring, check, inputs)


def share(rows: Tensor, group: Group) -> Tensor:
    """This rank's part of rows that every rank of the group has; without one, all of them."""
    if not group or not dist.is_initialized():
        return rows
    ranks = None if group is True else group
    return rows.tensor_split(dist.get_world_size(ranks))[dist.get_rank(ranks)]


class Local:
    """A batch on one process: a loss's ops as they are."""

    similarity_lse: Callable[..., tuple[Tensor, Tensor]] = staticmethod(similarity_lse)
    similarity_lse_both: Callable[..., tuple[Tensor, Tensor, Tensor]] = staticmethod(
        similarity_lse_both
    )
    similarity_softplus: Callable[..., tuple[Tensor, Tensor]] = staticmethod(similarity_softplus)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return x

    def mean(self, rows: Tensor, counted: Tensor | None = None) -> Tensor:
        """The mean over the rows of all ranks, or over those ``counted``: 0 if there are none."""
        if counted is None:
            return rows.mean()
        return rows.sum() / counted.sum().clamp(min=1)

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, in their order; no gradient flows back."""
        return x.detach()

    def columns(self, x: Tensor) -> Tensor:
        """This rank's rows and behind them those of the others, with their gradients."""
        return x

    def own(self, rows: Tensor) -> Tensor:
        """This rank's among the rows of all ranks."""
        return rows

    # Makes the log-sum-exp over a rank's rows that over the rows of all ranks, if there are others.
    # A bound, the same on all ranks, is no less than any part of it but for a factor of the number
    # of rows: then one reduction is enough, unless all parts are far below it.
    join: Callable[[Tensor, Tensor | None], Tensor] | None = None


LOCAL = Local()


class Ranks(Local):
    """A batch over the ranks of a group: the same calls, for this rank's rows of the whole.

    ``y`` are this rank's columns, and offsets count within them; the columns of other ranks are
    never left out. A sample has as many columns on every rank.

    Args:
        group: the process group; None: the default one.
        ring: pass columns around a ring; False: gather them.
        samples: how many each rank has.
    """

    def __init__(self, group: dist.ProcessGroup | None, ring: bool, samples: list[int]) -> None:
        self.group = group
        self.ring = ring
        self.samples = samples

    def similarity_lse(
        self, x: Tensor, y: Tensor | None = None, scale: float | Tensor = 1.0, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """As the op, over the columns of all ranks."""
        lse, pair, _ = self._similarity_lse(x, y, scale, columns=False, **options)
        return lse, pair

    def similarity_lse_both(
        self, x: Tensor, y: Tensor, scale: float | Tensor = 1.0, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the log-sum-exp of this rank's columns over the rows of all ranks."""
        return self._similarity_lse(x, y, scale, columns=True, **options)

    @uncompiled
    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return Sum.apply(x, self.group)

    def mean(self, rows: Tensor, counted: Tensor | None = None) -> Tensor:
        """The mean over the rows of all ranks, or over those ``counted``: 0 if there are none."""
        count = rows.new_full((), rows.numel()) if counted is None else counted.sum()
        total, count = self.sum(torch.stack([rows.sum(), count.to(rows.dtype)])).unbind()
        return total / count.clamp(min=1)

    @uncompiled
    @torch.no_grad()
    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, in their order; no gradient flows back."""
        return torch.cat(gather(x, self._sizes(x), self.group))

    @uncompiled
    def columns(self, x: Tensor) -> Tensor:
        """This rank's rows and behind them those of the others, with their gradients."""
        [(others, _)] = Blocks(self.group, self._sizes(x)).gather(x)
        return torch.cat([x, others])

    def own(self, rows: Tensor) -> Tensor:
        """This rank's among the rows of all ranks."""
        return rows.split(self.samples)[dist.get_rank(self.group)]

    @uncompiled
    @torch.no_grad()
    def join(self, lse: Tensor, bound: Tensor | None = None) -> Tensor:
        """The log-sum-exp over the rows of all ranks of what is ``lse`` over a rank's."""
        if bound is not None:
            total = self.sum(torch.exp(lse - bound))
            if bool((total > torch.finfo(lse.dtype).tiny ** 0.5).all()):  # alike on all ranks
                return bound + total.log()
        highest = lse.clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        highest = torch.where(highest.isfinite(), highest, 0.0)
        return highest + self.sum(torch.exp(lse - highest)).log()

    def _sizes(self, x: Tensor) -> list[int]:
        """The lengths of what is ``x`` on this rank, on every rank."""
        return [n * len(x) // self.samples[dist.get_rank(self.group)] for n in self.samples]

    @uncompiled
    def similarity_softplus(
        self,
        x: Tensor,
        y: Tensor,
        scale: float | Tensor = 1.0,
        bias: float | Tensor = 0.0,
        *,
        normalize: bool = False,
        **pairs: Any,
    ) -> tuple[Tensor, Tensor]:
        """As the op, over the columns of all ranks."""
        blocks = Blocks(self.group, self._sizes(y))
        travel = blocks.set_off(y) if self.ring else None
        total, pair = similarity_softplus(x, y, scale, bias, normalize=normalize, **pairs)
        if travel:
            totals = softplus_over_ring(blocks, travel, x, y, scale, bias, normalize)
        else:
            [(there, _)] = blocks.gather(y)
            totals, _ = similarity_softplus(x, there, scale, bias, normalize=normalize)
        return total + totals, pair

    @uncompiled
    def _similarity_lse(
        self,
        x: Tensor,
        y: Tensor | None,
        scale: float | Tensor,
        *,
        columns: bool,
        normalize: bool = False,
        **offsets: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shard = x if y is None else y
        blocks = Blocks(self.group, self._sizes(shard), both=columns, symmetric=y is None)
        travel = blocks.set_off(shard) if self.ring else None
        op: Any = similarity_lse_both if columns else similarity_lse
        own, pair, *own_columns = op(x, y, scale, normalize=normalize, **offsets)
        if travel:
            lse, column_lse = lse_over_ring(blocks, travel, x, shard, scale, normalize)
        else:
            lse, column_lse = _lse_over_gathered(blocks, x, shard, scale, normalize)
        home = blocks.send_home(column_lse)
        if columns:
            return _logsumexp(own, *lse), pair, _logsumexp(*own_columns, *home)
        return _logsumexp(own, *lse, *home), pair, own[:0]


def _lse_over_gathered(
    blocks: Blocks, x: Tensor, shard: Tensor, scale: float | Tensor, normalize: bool
) -> tuple[list[Tensor], Tensor]:
    """As :func:`lse_over_ring`, but for several shards in one vector."""
    rows, columns = [], x.new_empty(0)
    for there, both in blocks.gather(shard):
        op = similarity_lse_both if both else similarity_lse
        lse, _, *column_lse = op(x, there, scale, normalize=normalize)
        rows.append(lse)
        columns = column_lse[0] if both else columns
    return rows, columns


def _logsumexp(*parts: Tensor) -> Tensor:
    return torch.stack(parts).logsumexp(0)


@uncompiled
def _agree(group: Any, ring: bool, check: Callable[..., None], inputs: dict[str, Any]) -> Local:
    if not (group is None or isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group must be True or a process group of this process, not {group!r}")
    error, samples = None, 0
    try:
        check(**inputs)
        first = next(iter(inputs.values()))
        samples = len(first if isinstance(first, Tensor) else first[0])
        says = ", ".join(f"{name}: {_describe(x)}" for name, x in inputs.items())
        says += f", ring: {ring}"
    except Exception as e:  # raised below, when no rank waits for this one any more
        error, says = e, f"{type(e).__name__}: {e}"

    device: Any = "cpu"
    if "cpu:" not in dist.get_backend_config(group):  # else there is no need to wait for a GPU
        device = next((x.device for x in inputs.values() if getattr(x, "is_cuda", False)), "cuda")
    mine = torch.tensor([samples, zlib.crc32(says.encode())], device=device)
    everyone = mine.new_empty(dist.get_world_size(group), 2)
    dist.all_gather(list(everyone.unbind()), mine, group=group)
    counts, sums = everyone.T.tolist()
    if len(set(sums)) > 1:
        texts: list[Any] = [None] * len(sums)
        dist.all_gather_object(texts, says, group=group)
        if error is None:
            lines = "".join(f"\n  rank {rank}: {text}" for rank, text in enumerate(texts))
            raise ValueError(
                f"the ranks' inputs may differ in their rows only, not as here:{lines}"
            )
    if error is not None:
        raise error
    return Ranks(group, ring, counts) if len(counts) > 1 else LOCAL


def _describe(x: Any) -> str:
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_describe, x))}]"
    if not isinstance(x, Tensor):
        return repr(x)
    shape = ", ".join(["rows", *map(str, x.shape[1:])][: x.dim()])
    grad = ", requires grad" if x.requires_grad and torch.is_grad_enabled() else ""
    return f"{str(x.dtype).removeprefix('torch.')} [{shape}] on {x.device.type}{grad}"
