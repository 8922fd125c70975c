"""Queue, bank and shuffling over several processes: what one process with all rows would do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist

from fastssl.nn import MemoryBank, MemoryQueue, SplitBatchNorm, shuffled
from tests.distributed.launch import launch

SHARDS = [3, 5, 2]  # rows of each rank


def raises(error, call, says):
    with pytest.raises(error, match=says):
        call()


def cases() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = SHARDS[:size]
    torch.manual_seed(0)
    for group in (True, dist.group.WORLD):
        queue_follows(rank, rows, group)
        bank_follows(rank, rows, group)
    for shard in (rows, [4] * size):
        shuffling_is_undone(rank, shard)
    shuffling_mixes_ranks(rank, size)
    mistakes_are_known_to_all(rank)
    a_group_of_some(rank, size)


def queue_follows(rank, rows, group) -> None:
    for stored in (torch.float32, torch.bfloat16):
        queue = MemoryQueue(7, 4, labels=True, dtype=stored)
        whole = copy.deepcopy(queue)
        for came in (torch.float32, torch.float16, torch.bfloat16):
            keys = torch.randn(sum(rows), 4).to(came)
            labels = torch.arange(sum(rows))
            queue.enqueue(keys.split(rows)[rank], labels.split(rows)[rank], group)
            whole.enqueue(keys, labels)
            for mine, expected in zip(queue.buffers(), whole.buffers(), strict=True):
                assert torch.equal(mine, expected)


def bank_follows(rank, rows, group) -> None:
    bank = MemoryBank(20, 4)
    whole = copy.deepcopy(bank)
    for _ in range(3):
        features, indices = torch.randn(sum(rows), 4), torch.randperm(20)[: sum(rows)]
        bank.update(indices.split(rows)[rank], features.split(rows)[rank], group)
        whole.update(indices, features)
        assert torch.equal(bank.rows, whole.rows)


def shuffling_is_undone(rank, rows) -> None:
    x = torch.randn(sum(rows), 2, 3).split(rows)[rank]
    assert torch.equal(shuffled(lambda part: part.flatten(1), x, True), x.flatten(1))


def shuffling_mixes_ranks(rank, size) -> None:
    """Each rank normalises its share; all together that is a split batch norm of a shuffle."""
    torch.manual_seed(rank)  # ranks need not agree on what is random
    came = []

    def spy(part):
        came.extend(part.flatten().tolist())
        return part

    shuffled(spy, torch.full((20, 1), float(rank)), True)
    assert len(came) == 20
    assert len(set(came)) == size
    x = torch.randn(20, 3)
    alone = SplitBatchNorm(3, 1)(x)
    assert (shuffled(SplitBatchNorm(3, 1), x, True) - alone).abs().max() > 0.01
    torch.manual_seed(0)


def mistakes_are_known_to_all(rank) -> None:
    queue, bank = MemoryQueue(7, 4), MemoryBank(9, 4)
    before = queue.rows.clone()
    first = rank == 0
    width = torch.zeros(2, 4 if first else 5)
    dtype = torch.zeros(2, 4, dtype=torch.float32 if first else torch.bfloat16)
    number = torch.zeros(2, 4) if first else None
    raises((ValueError, TypeError), lambda: queue.enqueue(width, group=True), "keys")
    raises((ValueError, TypeError), lambda: queue.enqueue(dtype, group=True), "keys")
    raises((ValueError, TypeError), lambda: queue.enqueue(number, group=True), "keys")
    labels = torch.arange(2) if first else None
    kept = MemoryQueue(7, 4, labels=True)
    raises(
        (ValueError, TypeError),
        lambda: kept.enqueue(torch.zeros(2, 4), labels, group=True),
        "labels",
    )
    indices = torch.arange(2) if first else torch.arange(3)
    raises(
        (ValueError, TypeError),
        lambda: bank.update(indices, torch.zeros(2, 4), group=True),
        "indices",
    )
    assert torch.equal(queue.rows, before)
    queue.enqueue(torch.ones(2, 4), group=True)  # and all ranks go on


def a_group_of_some(rank, size) -> None:
    group = dist.new_group([0, 1])
    queue = MemoryQueue(7, 4)
    if rank < 2:
        queue.enqueue(torch.full((2, 4), rank - 0.5), group=group)
        assert queue.position == 4
        assert torch.equal(queue.rows[:4, 0], torch.tensor([-0.5, -0.5, 0.5, 0.5]))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_remember_as_one(size):
    launch(cases, size)
