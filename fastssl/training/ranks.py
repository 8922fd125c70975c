"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fastssl.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows progress."""
        return self.rank == 0


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """Join the other processes under torchrun (NCCL on GPUs, else gloo); alone otherwise.

    A process group that is there already is used, and left.

    Args:
        device: "auto" or a torch device; under torchrun each process takes its own GPU.

    Raises:
        UserError: there is no such device here.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Ranks(0, 1, chosen)
        return
    joined = dist.is_initialized()
    if not joined:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), world_size, chosen)
    finally:
        if not joined:
            dist.destroy_process_group()


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The torch device of that name; "auto": a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"no device {name!r}: auto, cpu, cuda, cuda:1 …") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not served: auto, cpu, cuda, cuda:1 …")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = device.index if device.index is not None else (local_rank or 0)
        if index >= count:
            raise UserError(f"device {name!r}: this machine has {count} CUDA devices")
        device = torch.device("cuda", index)
    return device
