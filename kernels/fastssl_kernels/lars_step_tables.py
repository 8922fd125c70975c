"""The tables that ``lars_step``'s kernels read in device memory: pieces, and where tensors lie."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

SPARES = 16  # CUDA graphs' steps that one eager step prepares for


class Pieces(NamedTuple):
    rows: Tensor  # [PIECES, 3] i64: tensor, first element, elements
    firsts: Tensor  # [TENSORS + 1] i64: each tensor's first piece


@functools.cache
def pieces_of(sizes: tuple[int, ...], block: int, device: torch.device) -> Pieces:
    """Kept for good: of any stream's use, and of any graph's."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "lars_step: parameters of these sizes were not seen before this CUDA graph's capture, "
            "in which nothing can be sent to the device: take a step before it"
        )
    counts = torch.tensor(sizes)
    pieces = (counts + block - 1) // block  # [TENSORS]
    firsts = torch.cat([torch.zeros(1, dtype=torch.int64), pieces.cumsum(0)])
    tensor = torch.arange(len(sizes)).repeat_interleave(pieces)  # [PIECES]
    begin = (torch.arange(len(tensor)) - firsts[tensor]) * block
    rows = torch.stack([tensor, begin, (counts[tensor] - begin).clamp(max=block)], 1)
    return Pieces(rows.to(device), firsts.to(device))


# A graph reads its addresses from host memory whenever it is replayed: pinned memory, by length,
# that is set aside before the capture and then kept as long as the process lives.
_spare: dict[int, list[Tensor]] = {}
_captured: list[tuple[Tensor, Tensor]] = []


def on_device(table: Tensor, key: tuple[int, ...], x: Tensor) -> Tensor:
    """The table, whose numbers are the key, where x is."""
    if not x.is_cuda:
        return table
    if not torch.cuda.is_current_stream_capturing():
        return _sent(key, x.device, torch.cuda.current_stream(x.device).cuda_stream)
    if not _spare.get(len(key)):
        raise RuntimeError(
            "lars_step: no memory is set aside for another CUDA graph: take a step, with gradients "
            "at addresses of their own, before the capture"
        )
    host = _spare[len(key)].pop()
    host.copy_(table.flatten())
    _captured.append((host, host.to(x.device, non_blocking=True)))
    return _captured[-1][1]


@functools.lru_cache(maxsize=64)
def _sent(table: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    """By stream, which orders a table's last use before the next of its memory."""
    host = torch.tensor(table, pin_memory=True)
    spare = _spare.setdefault(len(table), [])
    spare += [torch.empty_like(host, pin_memory=True) for _ in range(SPARES - len(spare))]
    return host.to(device, non_blocking=True)
