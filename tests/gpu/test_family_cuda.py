"""The losses beside NT-Xent and their ops, by Triton on a CUDA device (rehearsed by the
interpreter): right, repeatable, capturable, lean."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastssl
from fastssl import reference
from fastssl.functional import (
    clip_loss,
    dcl,
    dclw,
    info_nce,
    multi_view_nt_xent,
    nnclr,
    siglip_loss,
    sup_con,
)
from fastssl.nn import MemoryQueue
from fastssl.ops import similarity_softplus, similarity_topk
from tests.cases import views
from tests.numerics import GRADIENT, LOSS, UNIT

DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])
# Of the losses: float16 differs within the ops only, whose tests try it.
TWO_DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:]
)
LEARNED = pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
TEMPERATURE = 0.25  # its inverse is exact in every dtype


@pytest.fixture
def size(device):
    """N, D: ragged beside every tile."""
    return (13, 12) if device == "cpu" else (1021, 128)


def pair(size, dtype, device):
    """Two related views [N, D], unit rows."""
    return [F.normalize(z).to(device, dtype) for z in views("related", *size)]


def entries(like: Tensor) -> Tensor:
    """A queue [5N + 3, D]: numbers that all of the dtypes hold."""
    n, d = like.shape
    rows = torch.randn(5 * n + 3, d, generator=torch.Generator().manual_seed(7))
    return F.normalize(rows).bfloat16().to(like.device, like.dtype)


def classes(like: Tensor) -> Tensor:
    return torch.arange(len(like), device=like.device) % 5


# Each of two tensors [N, D] and a temperature; what is a sum of inputs would be rounded once more.
LOSSES = {
    "batch": lambda a, b, t: info_nce(a, b, None, t),
    "symmetric": lambda a, b, t: info_nce(a, b, None, t, symmetric=True),
    "queue": lambda a, b, t: info_nce(a, b, entries(a), t),
    "learned queue": lambda a, b, t: info_nce(a, b, torch.cat([b, a]).roll(3, 0), t),
    "own keys": lambda a, b, t: info_nce(a, b, b.roll(1, 0)[:, None], t),
    "clip": lambda a, b, t: clip_loss(a, b, 1 / t),
    "siglip": lambda a, b, t: siglip_loss(a, b, 2 / t, logit_bias=-2 / t),
    "labels": lambda a, b, t: sup_con(torch.stack([a, b], 1), classes(a), t),
    "one view": lambda a, b, t: sup_con(torch.cat([a, b]), classes(a).repeat(2), t),
    "first view": lambda a, b, t: sup_con(torch.stack([a, b], 1), None, t, contrast_mode="one"),
    "three views": lambda a, b, t: multi_view_nt_xent([a, b, a.roll(1, 0)], None, t),
    "indexes": lambda a, b, t: multi_view_nt_xent(torch.cat([a, b]), classes(a).repeat(2), t),
    "dcl": dcl,
    "dclw": dclw,
    "nnclr": lambda a, b, t: nnclr(a, b, entries(a), t),
}


def step(loss, tensors, temperature):
    """The loss, and the gradients of what it depends on (of a temperature tensor too)."""
    tensors = [z.detach().clone().requires_grad_() for z in tensors]
    leaves = tensors
    if isinstance(temperature, Tensor):
        temperature = temperature.detach().clone().requires_grad_()
        leaves = [*tensors, temperature]
    value = loss(*tensors, temperature)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), *(d for d in gradients if d is not None)


@TWO_DTYPES
@LEARNED
@pytest.mark.parametrize("name", LOSSES)
def test_loss(name, learned, dtype, device, size):
    """Beside the reference, which serves float64, on the same rounded inputs."""
    tensors = pair(size, dtype, device)
    t = torch.tensor(TEMPERATURE, device=device) if learned else TEMPERATURE
    loss, *gradients = step(LOSSES[name], tensors, t)
    wide = t.double() if learned else t
    true, *d_true = step(LOSSES[name], [z.double() for z in tensors], wide)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), true, rtol=LOSS, atol=0)
    with fastssl.use_backend("reference"):
        _, *rounded = step(LOSSES[name], tensors, t)
    for mine, plain, right in zip(gradients, rounded, d_true, strict=True):
        # A temperature's comes from weights rounded to the dtype, where a queue's mean is kept.
        exact = GRADIENT[dtype] if mine.dim() or dtype == torch.float32 else 1e-4
        # Several views' comes in parts that cancel, each rounded: the reference's as well.
        bound = torch.maximum(exact * right.norm(), 1.5 * (plain.double() - right).norm())
        assert (mine.double() - right).norm() <= bound


@DTYPES
@LEARNED
@pytest.mark.parametrize("form", ["plain", "pair"])
def test_softplus(form, learned, dtype, device, size):
    (n, d), (scale, bias) = size, (10.0, -10.0)
    x, _ = pair(size, dtype, device)
    y, _ = pair((n // 2 + 9, d), dtype, device)
    options = {"pair": {"pair_offset": 3, "exclude_pair": True}}.get(form, {})
    generator = torch.Generator().manual_seed(n)
    upstream = torch.rand(2, n, generator=generator, dtype=torch.float64).to(device) + 0.5
    if learned:
        scale, bias = (torch.tensor(value, device=device) for value in (scale, bias))

    def run(*inputs):
        leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in inputs]
        sums = similarity_softplus(*leaves, normalize=True, **options)
        wanted = [t for t in leaves if isinstance(t, Tensor)]
        total = sum((one * d).sum() for one, d in zip(sums, upstream, strict=True))
        return sums, torch.autograd.grad(total, wanted)

    inputs = (x, y, scale, bias)
    sums, gradients = run(*inputs)
    true, d_true = run(*(t.double() if isinstance(t, Tensor) else t for t in inputs))
    logit = 20 * UNIT  # what a logit of terms up to 10 is uncertain by, and a term relatively
    torch.testing.assert_close(sums[0], true[0], rtol=LOSS + logit, atol=1e-37)
    torch.testing.assert_close(sums[1], true[1], rtol=LOSS, atol=logit)
    similarity = x.double() @ y.double().T  # of unit rows, nearly
    weights = upstream[0][:, None] * torch.sigmoid(10 * similarity - 10)
    if form == "pair":
        weights.scatter_(1, (torch.arange(n, device=device)[:, None] + 3) % len(y), upstream[1:].T)
    # What each gradient is a sum of, without the signs that may let it cancel.
    sizes = (10 * weights.sum(1), 10 * weights.sum(0), (weights * similarity.abs()).sum())
    for mine, right, size in zip(gradients, d_true, (*sizes, weights.sum()), strict=False):
        error = (mine.double() - right).norm()
        assert error <= GRADIENT[mine.dtype] * right.norm() + logit * size.norm()


@DTYPES
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "apart"])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_topk(k, ties, dtype, device):
    queries, bank, d = (3, 230, 7) if device == "cpu" else (301, 20011, 65)
    generator = torch.Generator().manual_seed(k)

    def rows(count):
        if ties:  # products without rounding, many of them equal: the smaller index comes first
            return torch.randint(-2, 3, (count, d), generator=generator).to(device, dtype)
        return torch.randn(count, d, generator=generator).to(device, dtype)

    x, y = rows(queries), rows(bank)
    values, indices = similarity_topk(x, y, k, normalize=not ties)
    true, order = reference.similarity_topk(x.double(), y.double(), k, normalize=not ties)
    assert values.dtype == torch.float32
    if ties:
        assert torch.equal(indices, order)
        assert torch.equal(values.double(), true)
        return
    found = F.normalize(x.double()) @ F.normalize(y.double()).T
    assert (values - true).abs().max() <= 2.0**-21
    assert (values - found.gather(1, indices)).abs().max() <= 2.0**-21
    assert (values[:, 1:] <= values[:, :-1]).all()


# sup_con's class sums are torch's, whose order of adding is not fixed on CUDA.
REPEATABLE = [name for name in LOSSES if name not in ("labels", "one view")]


@pytest.mark.parametrize("name", REPEATABLE)
def test_loss_bitwise_the_same_twice(name, device, size):
    tensors = pair(size, torch.bfloat16, device)
    t = torch.tensor(TEMPERATURE, device=device)
    first = step(LOSSES[name], tensors, t)
    for _ in range(1 if device == "cpu" else 5):
        for one, other in zip(step(LOSSES[name], tensors, t), first, strict=True):
            assert torch.equal(one, other)


def test_topk_bitwise_the_same_twice(device, size):
    queries, _ = pair(size, torch.bfloat16, device)
    first = similarity_topk(queries, entries(queries), 20)
    for _ in range(1 if device == "cpu" else 5):
        for one, other in zip(similarity_topk(queries, entries(queries), 20), first, strict=True):
            assert torch.equal(one, other)


@contextlib.contextmanager
def no_waiting(device):
    """Within the block a wait for the device is an error."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


# Those that read nothing on the host; indexes are read there, as the loss says.
FREE = [name for name in LOSSES if name not in ("indexes", "queue", "nnclr")]


@pytest.mark.parametrize("name", FREE)
def test_no_host_waits_for_the_device(name, cuda, size):
    tensors = pair(size, torch.bfloat16, cuda)
    t = torch.tensor(TEMPERATURE, device=cuda)
    for temperature in (TEMPERATURE, t):
        step(LOSSES[name], tensors, temperature)  # compiles
        with no_waiting(cuda):
            step(LOSSES[name], tensors, temperature)


class Moco:
    """A step over a queue of K keys: the loss, its gradients, then the keys enter."""

    def __init__(self, size, dtype, device, learned):
        n, d = size
        self.queue = MemoryQueue(3 * n + 1, d, dtype=dtype).to(device)  # not a multiple
        self.query, self.key = pair(size, dtype, device)
        self.leaves = [self.query.requires_grad_()]
        self.temperature = 0.1
        if learned:
            self.temperature = torch.tensor(0.1, device=device, requires_grad=True)
            self.leaves.append(self.temperature)

    def loss(self) -> Tensor:
        value = info_nce(self.query, self.key, self.queue.rows, self.temperature)
        self.queue.enqueue(self.key)
        return value

    def __call__(self) -> tuple[Tensor, ...]:
        value = self.loss()
        return value, *torch.autograd.grad(value, self.leaves)

    @torch.no_grad()
    def take(self, seed: int) -> None:
        """New queries and keys, at the old addresses."""
        generator = torch.Generator().manual_seed(seed)
        for z in (self.query, self.key):
            z.copy_(F.normalize(torch.randn(z.shape, generator=generator)))


def captured(work, state, device):
    """``work`` as one CUDA graph, ``state`` as before; itself while rehearsing."""
    if device != "cuda":
        return work
    before = copy.deepcopy(state.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    state.load_state_dict(before)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()

    def replay():
        graph.replay()
        return results

    return replay


@TWO_DTYPES
@LEARNED
def test_queue_step_in_a_cuda_graph(learned, dtype, device, size):
    """Replayed until the queue has wrapped: bitwise what the same steps give without a graph."""
    moco = Moco(size, dtype, device, learned)
    plain = Moco(size, dtype, device, learned)
    plain.queue.load_state_dict(moco.queue.state_dict())
    replay = captured(moco, moco.queue, device)
    for seed in range(5):
        moco.take(seed)
        plain.take(seed)
        for got, want in zip(replay(), plain(), strict=True):
            assert torch.equal(got, want)
        for got, want in zip(moco.queue.buffers(), plain.queue.buffers(), strict=True):
            assert torch.equal(got, want)
    assert moco.queue.position == 5 * size[0] % (3 * size[0] + 1)


@LEARNED
def test_queue_step_without_waiting(learned, device, size):
    moco = Moco(size, torch.bfloat16, device, learned)
    moco()  # compiles
    with no_waiting(device):
        moco()


def test_nnclr_without_waiting(device, size):
    prediction, projection = pair(size, torch.bfloat16, device)
    queue = entries(prediction)

    def loss(a, b, t):
        return nnclr(a, b, queue, t)

    step(loss, (prediction, projection), TEMPERATURE)  # compiles
    with no_waiting(device):
        step(loss, (prediction, projection), TEMPERATURE)


@LEARNED
def test_queue_step_compiles_whole(learned, cuda, size):
    moco, plain = (Moco(size, torch.float32, cuda, learned) for _ in range(2))
    plain.queue.load_state_dict(moco.queue.state_dict())
    whole = torch.compile(moco.loss, fullgraph=True)
    for seed in range(5):
        moco.take(seed)
        plain.take(seed)
        loss, want = whole(), plain.loss()
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-6)
        for got, right in zip(
            torch.autograd.grad(loss, moco.leaves),
            torch.autograd.grad(want, plain.leaves),
            strict=True,
        ):
            torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moco.queue.state_dict(), plain.queue.state_dict())


@pytest.mark.parametrize("name", ["queue", "clip", "siglip", "labels", "topk"])
def test_memory_far_below_the_matrix(name, cuda):
    """Less than an eighth of the logits in bfloat16, of which the formulas hold several."""
    n, k, d = {"queue": (256, 1 << 18, 128), "topk": (4096, 1 << 16, 128)}.get(
        name, (16384, 16384, 128)
    )
    tensors = pair((n, d), torch.bfloat16, cuda)
    queue = F.normalize(torch.randn(k, d, device=cuda)).bfloat16()

    def run():
        if name == "topk":
            return similarity_topk(tensors[0], queue, 20)
        loss = LOSSES[name]
        if name == "queue":
            loss = lambda a, b, t: info_nce(a, b, queue, t)  # noqa: E731
        return step(loss, tensors, TEMPERATURE)

    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 2 * n * (2 * n if name == "labels" else k) / 8
