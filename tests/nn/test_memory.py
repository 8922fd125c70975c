"""The queue and the bank: against a list that keeps everything, and against the formula."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from fastssl import use_backend
from fastssl.functional import info_nce
from fastssl.nn import MemoryBank, MemoryQueue

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def ring(history, size):
    """Where everything that ever entered lies in a ring of so many rows: the newest wins."""
    rows = [None] * size
    for i, row in enumerate(history):
        rows[i % size] = row
    return rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize(
    "batches", [[4, 4, 4], [3, 3, 3, 3], [5], [8, 1], [7, 9, 2], [23, 1, 16], [0, 2, 0]]
)
def test_the_newest_rows_stay_in_order(size, batches, device):
    queue = MemoryQueue(size, 3, normalize=False, labels=True).to(device)
    history = []
    initial = queue.rows.clone()
    for batch in batches:
        keys = torch.randn(batch, 3, device=device)
        labels = torch.arange(len(history), len(history) + batch, device=device)
        history += zip(keys, labels, strict=True)
        queue.enqueue(keys, labels)
        assert queue.position == len(history) % size
        for i, row in enumerate(ring(history, size)):
            key, label = (initial[i], -1) if row is None else row
            assert torch.equal(queue.rows[i], key)
            assert queue.labels[i] == label


def test_it_begins_with_random_unit_rows():
    queue = MemoryQueue(50, 8, labels=True)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(50))
    assert len(queue.rows.unique(dim=0)) == 50
    assert (queue.labels == -1).all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("came", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keys_are_stored_as_unit_vectors(came, stored):
    queue = MemoryQueue(4, 5, dtype=stored)
    keys = (100 * torch.randn(3, 5)).to(came)
    keys[1] = 0
    queue.enqueue(keys)
    assert queue.rows.dtype == stored
    expected = F.normalize(keys.double())
    epsilon = max(torch.finfo(stored).eps, torch.finfo(torch.float64).eps * 8)
    if torch.float64 not in (came, stored):
        epsilon = max(epsilon, 1e-6)
    torch.testing.assert_close(queue.rows[:3].double(), expected, rtol=epsilon, atol=epsilon)
    assert not queue.rows[1].any()


def test_enqueueing_moves_nothing_and_needs_no_graph():
    queue = MemoryQueue(6, 2)
    places = queue.rows.data_ptr(), queue.position.data_ptr()
    queue.enqueue(torch.randn(4, 2, requires_grad=True) * 2)
    assert (queue.rows.data_ptr(), queue.position.data_ptr()) == places
    assert not queue.rows.requires_grad


def test_the_state_holds_everything():
    queue = MemoryQueue(5, 2, labels=True)
    queue.enqueue(torch.randn(3, 2), torch.arange(3))
    assert set(queue.state_dict()) == {"rows", "labels", "position"}
    assert set(MemoryQueue(5, 2).state_dict()) == {"rows", "position"}
    other = MemoryQueue(5, 2, labels=True)
    other.load_state_dict(copy.deepcopy(queue.state_dict()))
    keys = torch.randn(4, 2)
    for q in (queue, other):
        q.enqueue(keys, torch.arange(4))
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers(), strict=True))


def test_it_compiles_whole():
    queue = MemoryQueue(7, 3, labels=True)
    plain = copy.deepcopy(queue)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(keys, labels):
        total = queue.rows.sum()
        queue.enqueue(keys, labels)
        return total

    for batch in (3, 3, 3, 10):
        keys, labels = torch.randn(batch, 3), torch.arange(batch)
        before = plain.rows.sum()
        plain.enqueue(keys, labels)
        assert step(keys, labels) == before
        torch.testing.assert_close(queue.state_dict(), plain.state_dict())


@pytest.mark.gpu
@NO_GPU
def test_it_goes_on_inside_a_cuda_graph():
    queue = MemoryQueue(7, 3, labels=True).cuda()
    plain = copy.deepcopy(queue)
    keys, labels = torch.randn(4, 3, device="cuda"), torch.arange(4, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        queue.enqueue(keys, labels)
    torch.cuda.synchronize()
    queue.load_state_dict(plain.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        queue.enqueue(keys, labels)
    for _ in range(5):
        keys.normal_()
        graph.replay()
        plain.enqueue(keys, labels)
        torch.testing.assert_close(queue.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.gpu
@NO_GPU
def test_it_never_waits_for_the_device():
    queue, bank = MemoryQueue(7, 3).cuda(), MemoryBank(9, 3).cuda()
    keys, indices = torch.randn(4, 3, device="cuda"), torch.tensor([1, 3, 5, 8], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        queue.enqueue(keys)
        bank.update(indices, keys)
        bank.sample(5, exclude=indices)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["reference", None])
def test_the_queue_may_move_on_before_the_backward(dtype, normalize, backend):
    """A frozen side's gradient is settled in the forward: nothing of the queue is kept."""
    queue = MemoryQueue(9, 4, dtype=dtype)
    query, keys = torch.randn(6, 4, dtype=dtype, requires_grad=True), torch.randn(6, 4).to(dtype)
    temperature = torch.tensor(0.2, requires_grad=True)

    def loss(rows):
        with use_backend(backend) if backend else nullcontext():
            return info_nce(query, keys, rows, temperature, normalize=normalize)

    expected = torch.autograd.grad(loss(queue.rows.clone()), (query, temperature))
    value = loss(queue.rows)
    queue.enqueue(keys)
    for mine, theirs in zip(
        torch.autograd.grad(value, (query, temperature)), expected, strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("keys", "labels", "error", "says"),
    [
        (torch.zeros(2, 4), None, ValueError, r"keys must have shape \[B, 3\], not \[2, 4\]"),
        (torch.zeros(3), None, ValueError, r"keys must have shape \[B, 3\], not \[3\]"),
        (torch.zeros(2, 3).long(), None, TypeError, "keys must be a floating-point tensor, not"),
        ([[0.0] * 3], None, TypeError, "keys must be a floating-point tensor, not list"),
        (torch.zeros(2, 3, device="meta"), None, ValueError, "keys must be on the device of the"),
        (torch.zeros(2, 3), torch.arange(2), ValueError, "labels: this queue keeps none"),
    ],
)
def test_wrong_keys_are_named(keys, labels, error, says):
    queue = MemoryQueue(5, 3)
    before = copy.deepcopy(queue.state_dict())
    with pytest.raises(error, match=says):
        queue.enqueue(keys, labels)
    torch.testing.assert_close(queue.state_dict(), before)


@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        (None, TypeError, "labels must be an int64 tensor, not NoneType"),
        (torch.zeros(2), TypeError, r"labels must be an int64 tensor, not torch\.float32"),
        (torch.arange(3), ValueError, r"labels must have shape \[2\], not \[3\]"),
    ],
)
def test_wrong_labels_are_named(labels, error, says):
    with pytest.raises(error, match=says):
        MemoryQueue(5, 3, labels=True).enqueue(torch.zeros(2, 3), labels)


@pytest.mark.parametrize(("size", "dim", "says"), [(0, 3, "size"), (3, -1, "dim")])
def test_wrong_sizes_are_named(size, dim, says):
    with pytest.raises(ValueError, match=f"{says} must be positive, not {min(size, dim)}"):
        MemoryQueue(size, dim)


# The bank


def test_rows_follow_by_the_formula():
    bank = MemoryBank(6, 4, momentum=0.3)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(6))
    before = bank.rows.double()
    indices, features = torch.tensor([4, 0, 3]), 7 * torch.randn(3, 4, requires_grad=True)
    bank.update(indices, features)
    moved = F.normalize(0.3 * before[indices] + 0.7 * F.normalize(features.detach().double()))
    torch.testing.assert_close(bank.rows[indices].double(), moved, rtol=1e-6, atol=1e-6)
    others = torch.tensor([1, 2, 5])
    assert torch.equal(bank.rows[others].double(), before[others])
    assert torch.equal(bank(indices), bank.rows[indices])
    assert set(bank.state_dict()) == {"rows"}


def test_lookups_and_samples_are_copies():
    bank = MemoryBank(6, 4)
    mine, drawn = bank(torch.tensor([2, 1])), bank.sample(5)
    before = mine.clone(), drawn.clone()
    bank.update(torch.arange(6), torch.randn(6, 4))
    assert torch.equal(mine, before[0])
    assert torch.equal(drawn, before[1])


@pytest.mark.parametrize("exclude", [None, [], [0], [9], [3, 2, 7], [9, 0, 1, 2, 8], [*range(9)]])
def test_samples_are_even_over_those_not_excluded(exclude):
    bank = MemoryBank(10, 1)
    bank.rows.copy_(torch.arange(10.0)[:, None])
    excluded = None if exclude is None else torch.tensor(exclude, dtype=torch.int64)
    drawn = bank.sample(20_000, exclude=excluded).flatten()
    left = sorted(set(range(10)) - set(exclude or []))
    counts = drawn.long().bincount(minlength=10).double()
    assert counts.nonzero().flatten().tolist() == left
    expected = 20_000 / len(left)
    assert (counts[left] - expected).abs().max() < 5 * expected**0.5


def test_samples_are_those_of_the_generator():
    bank = MemoryBank(100, 2)
    a, b, c = (bank.sample(9, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_wrong_arguments_of_the_bank_are_named():
    bank = MemoryBank(4, 3)
    with pytest.raises(ValueError, match="no sample is left: 4 of 4 are excluded"):
        bank.sample(2, exclude=torch.arange(4))
    with pytest.raises(TypeError, match=r"indices must be an int64 tensor, not torch\.int32"):
        bank.update(torch.arange(2).int(), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"features must have shape \[B, 3\], not \[2, 2\]"):
        bank.update(torch.arange(2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"indices must have shape \[2\], not \[3\]"):
        bank.update(torch.arange(3), torch.zeros(2, 3))
    for momentum in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"momentum must lie in \[0, 1\), not {momentum}"):
            MemoryBank(4, 3, momentum)
    with pytest.raises(ValueError, match="num_samples must be positive, not 0"):
        MemoryBank(0, 3)
