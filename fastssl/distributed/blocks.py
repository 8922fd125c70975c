"""The blocks of a matrix of similarities that a rank computes, and what it exchanges for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup | None


class Blocks:
    """The blocks of this rank's rows with the columns of each other rank, its *shard*.

    A block goes by its distance: how many places to the left that rank is. Those of ``both`` are
    computed for the sums of their rows and of their columns, those of ``rows`` for the former.

    Args:
        group: the process group; None: the default one.
        columns: how many each rank has.
        both: whether the columns' sums are wanted as well.
        symmetric: whether the rows are the columns. Then a block and its mirror image, the
            other's block with this rank, are one: one of the two computes it, for both.
    """

    def __init__(
        self,
        group: Group,
        columns: list[int],
        *,
        both: bool = False,
        symmetric: bool = False,
    ) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = size = len(columns)
        self.columns = columns
        self.both, self.rows = range(0), range(1, size)
        if both:
            self.both, self.rows = self.rows, self.both
        elif symmetric:
            half = size // 2  # at this distance, of an even number, both compute the block
            self.both, self.rows = range(1, size - half), range(size - half, half + 1)
        self.distances = range(1, len(self.both) + len(self.rows) + 1)

    def left(self, distance: int) -> int:
        """The rank so many places to the left."""
        return (self.rank - distance) % self.size

    def width(self, distance: int) -> int:
        """How many columns that rank has."""
        return self.columns[self.left(distance)]

    def gather(self, shard: Tensor) -> list[tuple[Tensor, bool]]:
        """The other ranks' columns, in one tensor those of ``both`` (True) and of ``rows``."""
        shards = _Gather.apply(shard, self)
        parts = (shards[: len(self.both)], True), (shards[len(self.both) :], False)
        return [(torch.cat(part), both) for part, both in parts if part]

    def send_home(self, sums: Tensor) -> tuple[Tensor, ...]:
        """Send the sums of the columns of ``both`` to their ranks, and get those of this rank's
        columns: one vector from each rank that computes its block with them."""
        if not self.both:
            return ()
        there = [self.left(d) for d in self.both]
        parts = dict(zip(there, sums.split([self.columns[r] for r in there]), strict=True))
        here = {self.left(-d) for d in self.both}
        send = [self.columns[r] if r in parts else 0 for r in range(self.size)]
        receive = [self.columns[self.rank] if r in here else 0 for r in range(self.size)]
        by_rank = torch.cat([parts[r] for r in sorted(parts)])
        return _Exchange.apply(by_rank, send, receive, self.group).split(self.columns[self.rank])

    def set_off(self, shard: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The other ranks' shards by distance, as they arrive; the first is on its way at once."""
        travel = self._travel(shard.detach().contiguous())
        next(travel)
        return travel

    def _travel(self, shard: Tensor) -> Iterator[tuple[int, Tensor]]:
        for distance in self.distances:
            arriving = shard.new_empty(self.width(distance), *shard.shape[1:])
            transfer = self.shift(shard, arriving, 1)
            yield distance - 1, shard
            wait(transfer)
            shard = arriving
        yield self.distances[-1], shard

    def shift(self, out: Tensor, into: Tensor, places: int, tag: int = 0) -> list[dist.Work]:
        """Begin to send so many places to the right, and to receive from as many to the left."""
        return dist.batch_isend_irecv(
            [
                dist.P2POp(
                    operation, tensor, group=self.group, tag=tag, group_peer=self.left(distance)
                )
                for operation, tensor, distance in (
                    (dist.isend, out, -places),
                    (dist.irecv, into, places),
                )
            ]
        )


class _Gather(torch.autograd.Function):
    """The other ranks' shards, by distance."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, blocks: Blocks) -> tuple[Tensor, ...]:
        ctx.blocks, ctx.dtype = blocks, shard.dtype
        shards = gather(shard, blocks.columns, blocks.group)
        return tuple(shards[blocks.left(d)] for d in blocks.distances)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_shards: Tensor) -> tuple[Tensor, None]:
        blocks, most = ctx.blocks, max(ctx.blocks.columns)
        wide = torch.promote_types(ctx.dtype, torch.float32)  # halves add up in float32
        d_shard = d_shards[0].new_empty(most, *d_shards[0].shape[1:], dtype=wide)
        parts = [torch.zeros_like(d_shard)] * blocks.size
        for distance, d in zip(blocks.distances, d_shards, strict=True):
            parts[blocks.left(distance)] = _padded(d.to(wide), most)
        dist.reduce_scatter(d_shard, parts, group=blocks.group)
        return d_shard[: blocks.width(0)].to(ctx.dtype), None


class _Exchange(torch.autograd.Function):
    """Parts of a vector to each rank, and parts from each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
        ctx.back = (receive, send, group)
        return _exchange(x, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(d_out, *ctx.back), None, None, None


class Sum(torch.autograd.Function):
    """The sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Tensor, None]:
        return _sum(d_sum, ctx.group), None


def gather(x: Tensor, rows: list[int], group: Group) -> list[Tensor]:
    """Every rank's ``x``, of so many rows."""
    padded = x.new_empty(len(rows), max(rows), *x.shape[1:])
    dist.all_gather(list(padded.unbind()), _padded(x, max(rows)), group=group)
    return [part[:n] for part, n in zip(padded, rows, strict=True)]


def wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


def _exchange(x: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(receive))
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


def _sum(x: Tensor, group: Group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _padded(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])
