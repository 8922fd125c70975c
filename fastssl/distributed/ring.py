"""The ring: every rank's columns visit every rank, and in the backward once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl import backends
from fastssl.distributed.blocks import Blocks, wait

Travel = Iterator[tuple[int, Tensor]]
Inputs = tuple[Any, ...]  # x, a shard, scalars
Pair = tuple[Tensor, Tensor | None]  # of the rows, of the columns
Needs = tuple[bool, ...]  # which inputs need a gradient


def lse_over_ring(
    blocks: Blocks,
    travel: Travel,
    x: Tensor,  # [M, D]
    shard: Tensor,  # [columns, D]
    scale: float | Tensor,
    normalize: bool,
) -> tuple[Sequence[Tensor], Tensor]:
    """Log-sum-exps of this rank's rows over each other shard, [M], and those of the columns of
    ``blocks.both``, one shard's after another."""
    tensor_scale, factor = _split(scale, 1.0)
    op = _Lse(x, factor, normalize)
    lse, column_lse = _Ring.apply(op, blocks, travel, x, shard, tensor_scale)
    return lse.unbind(), column_lse


def softplus_over_ring(
    blocks: Blocks,
    travel: Travel,
    x: Tensor,  # [M, D]
    shard: Tensor,  # [columns, D]
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool,
) -> Tensor:
    """Sums of softplus of this rank's rows over all other shards, [M]."""
    tensor_scale, factor = _split(scale, 1.0)
    tensor_bias, shift = _split(bias, 0.0)
    op = _Softplus(x, factor, shift, normalize)
    return _Ring.apply(op, blocks, travel, x, shard, tensor_scale, tensor_bias)[0].sum(0)


class _Lse:
    """``similarity_lse`` on a block: of its rows, and of its columns where ``both`` are wanted."""

    def __init__(self, x: Tensor, factor: float, normalize: bool) -> None:
        self.fwd, self.bwd = _raw("similarity_lse", x, doubles=("native",))
        self.options = (factor, normalize, None, None, False)

    def forward(self, inputs: Inputs, both: bool) -> tuple[Tensor, Tensor]:
        rows, _, columns, _ = self.fwd(*inputs, *self.options, both, False)
        return rows, columns

    def backward(self, upstream: Pair, inputs: Inputs, results: Pair, needs: Needs) -> Inputs:
        d_rows, d_columns = upstream
        d_pair = torch.zeros_like(d_rows)
        return self.bwd(d_rows, d_pair, d_columns, *inputs, *results, *self.options, *needs)


class _Softplus:
    """``similarity_softplus`` on a block."""

    def __init__(self, x: Tensor, factor: float, shift: float, normalize: bool) -> None:
        self.fwd, self.bwd = _raw("similarity_softplus", x)
        self.options = (factor, shift, normalize, None, False)

    def forward(self, inputs: Inputs, both: bool) -> tuple[Tensor, Tensor]:
        rows, _ = self.fwd(*inputs, *self.options)
        return rows, rows[:0]

    def backward(self, upstream: Pair, inputs: Inputs, results: Pair, needs: Needs) -> Inputs:
        d_rows, _ = upstream
        return self.bwd(d_rows, torch.zeros_like(d_rows), *inputs, *self.options, *needs)


class _Ring(torch.autograd.Function):
    """An op over the blocks as the shards arrive.

    In the backward the shards travel again, each followed by its gradient, which then goes home.
    """

    @staticmethod
    def forward(
        ctx: Any, op: Any, blocks: Blocks, travel: Travel, x: Tensor, shard: Tensor, *scalars: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.op, ctx.blocks = op, blocks
        rows, columns = [], []
        for distance, there in travel:
            row, column = op.forward((x, there, *scalars), distance in blocks.both)
            rows.append(row)
            columns.append(column)
        results = torch.stack(rows), torch.cat(columns)
        ctx.save_for_backward(x, shard, *scalars, *results)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor, d_columns: Tensor) -> tuple[Tensor | None, ...]:
        blocks, needs = ctx.blocks, ctx.needs_input_grad[3:]
        x, shard, *scalars, rows, columns = ctx.saved_tensors
        widths = [blocks.width(d) for d in blocks.both]
        parts = zip(d_columns.split(widths), columns.split(widths), strict=True)
        wide = torch.promote_types(x.dtype, torch.float32)  # halves add up in float32
        totals: list[Any] = [0] * (1 + len(scalars))  # the gradients of x and of the scalars
        d_arriving: Any = 0
        transfer: list = []
        for i, (distance, there) in enumerate(blocks.set_off(shard)):
            d_column, column = next(parts, (None, None))
            d_x, d_there, *d_scalars = ctx.op.backward(
                (d_rows[i], d_column), (x, there, *scalars), (rows[i], column), needs
            )
            totals = [t + d for t, d in zip(totals, (d_x.to(wide), *d_scalars), strict=True)]
            if needs[1]:
                wait(transfer)
                d_leaving = d_there.to(wide) + d_arriving
                last = distance == blocks.distances[-1]
                ahead, places = (0, -distance) if last else (distance + 1, 1)
                d_arriving = d_leaving.new_empty(blocks.width(ahead), shard.shape[1])
                transfer = blocks.shift(d_leaving, d_arriving, places, tag=1)
        wait(transfer)
        gradients = zip((totals[0], d_arriving, *totals[1:]), needs, strict=True)
        d_x, d_shard, *d_scalars = (d if need else None for d, need in gradients)
        cast = (d if d is None else d.to(x.dtype) for d in (d_x, d_shard))
        return None, None, None, *cast, *d_scalars


def _split(value: float | Tensor, neutral: float) -> tuple[Tensor | None, float]:
    """A number as the raw ops take it: a tensor, or a float beside the neutral element."""
    return (value, neutral) if isinstance(value, Tensor) else (None, float(value))


def _raw(
    op: str, x: Tensor, doubles: tuple[str, ...] = ()
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The raw forward and backward that serve ``op`` for such rows; ``doubles``: the backends that
    take float64, which elsewhere is the reference's."""
    backend = backends.select(op, x.device.type)
    if backend == "reference" or (x.dtype == torch.float64 and backend not in doubles):
        module = import_module(f"fastssl.ops.{op}")
        return module._reference_fwd, module._reference_bwd
    return backends.raw(f"{op}_fwd", backend), backends.raw(f"{op}_bwd", backend)
