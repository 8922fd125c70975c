"""``ema_update_`` by Triton against the formula: under the interpreter, or on CUDA."""

from __future__ import annotations

import itertools

import fastssl_kernels.ema_update as kernels
import pytest
import torch

import fastssl
from fastssl.ops import ema_update_
from fastssl.ops.ema_update import EmaUpdate
from tests.ops.test_ema_update import FLOATS, INF, NAN, PAIRS, check, tensors

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's inf - inf
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(), (1,), (3, 5), (0, 4), (7, 1, 11), (16,), (37,)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Rows of 16 elements: several a tensor, ragged at the end."""
    monkeypatch.setattr(kernels, "BLOCK", 16)


def triton(targets, sources, m):
    with fastssl.use_backend("triton"):
        ema_update_(targets, sources, m)


def made(dtypes, seed, shapes=SHAPES):
    """One tensor of each shape; dtypes in turns."""
    turns = itertools.islice(itertools.cycle(dtypes), len(shapes))
    return [t.to(DEVICE) for t in tensors(shapes, turns, seed)]


def check_all(targets, sources, m, scalar=None):
    before = [t.clone() for t in targets]
    triton(targets, sources, m if scalar is None else scalar)
    for trio in zip(targets, before, sources, strict=True):
        check(*trio, m)


@pytest.mark.parametrize("m", [0.0, 0.3, 0.996, 1.0])
def test_every_mixture_of_dtypes_in_one_launch(m):
    targets, sources = (made([pair[i] for pair in PAIRS], i, SHAPES * 5) for i in (0, 1))
    for some, value in ((targets, 0), (sources, 1)):
        some += [
            torch.full((5, 7), value, dtype=d, device=DEVICE) for d in (torch.int64, torch.bool)
        ]
    check_all(targets, sources, m)


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (FLOATS[:1], FLOATS[:1]),
        (FLOATS[:1], FLOATS[1:2]),  # a master average of bfloat16 weights
        (FLOATS[1:2], FLOATS[1:2]),
        (FLOATS[:1], FLOATS[1:3]),
        (FLOATS[:3], FLOATS[2:3]),
        (FLOATS[3:], FLOATS[3:]),
        (FLOATS[3:], FLOATS[:1]),
    ],
    ids=str,
)
def test_few_dtypes_make_a_smaller_kernel(target, source):
    scalar = torch.tensor(0.75, device=DEVICE)
    check_all(made(target, 0), made(source, 1), 0.75, scalar)


def test_misaligned_and_strided_views():
    block, other = made(FLOATS[:1], 0, [(200,)])[0], made(FLOATS[:1], 1, [(200,)])[0]
    check_all([block[1:40], block[50:53]], [other[3:42], other[60:63]], 0.9)
    images = [
        t.clone(memory_format=torch.channels_last) for t in made(FLOATS[:1], 2, [(2, 3, 4, 5)] * 2)
    ]
    check_all(images[:1], images[1:], 0.9)
    before = block.clone()
    check_all([block[::2], images[0][:, 1]], [other[:100], images[1][:, 0].mT.contiguous().mT], 0.9)
    assert torch.equal(block[1::2], before[1::2])


def test_infinite_and_nan():
    odd = torch.tensor([NAN, INF, -INF, 1.0, 3e38], device=DEVICE)
    for m, expected in ((1.0, [2.0] * 5), (0.0, odd), (0.9, [NAN, INF, -INF, 1.9, 3e37])):
        target = torch.full((5,), 2.0, device=DEVICE)
        triton([target], [odd], m)
        expected = torch.as_tensor(expected, device=DEVICE)
        torch.testing.assert_close(target, expected, equal_nan=True)
    own = odd.clone()
    triton([own], [own], 0.5)
    torch.testing.assert_close(own, odd, equal_nan=True)


def test_a_kept_table_is_used_for_what_it_was_made_of_only(monkeypatch):
    kernels._table.cache_clear()
    targets, sources = made(FLOATS[:1], 0), made(FLOATS[:1], 1)
    for _ in range(3):
        check_all(targets, sources, 0.5)
    assert kernels._table.cache_info().misses == 1
    targets[-1] = targets[-1].clone()  # other storage
    check_all(targets, sources, 0.5)
    sources[-2].data = sources[-2].double()  # the same tensor, another dtype
    check_all(targets, sources, 0.5)
    targets[-1].resize_(36)
    sources[-1].resize_(36)
    check_all(targets, sources, 0.5)
    assert kernels._table.cache_info().misses == 4
    for _ in range(100):
        check_all(made(FLOATS[:1], 0, [(3,)]), made(FLOATS[:1], 1, [(3,)]), 0.5)
    assert kernels._table.cache_info().currsize <= 64


@pytest.mark.parametrize("gaps", [False, True])
def test_steps_of_the_same_tensors(gaps):
    targets, sources = made(FLOATS, 0), made(FLOATS, 1)
    if gaps:  # which are copied anew at every step
        targets.append(torch.zeros(6, 4, device=DEVICE)[:, ::2])
        sources.append(torch.ones(6, 2, device=DEVICE))
    with fastssl.use_backend("triton"):
        update = EmaUpdate(targets, sources)
        for m in (0.5, 0.25, torch.tensor(0.75, device=DEVICE), 1.0, 0.0):
            before = [t.clone() for t in targets]
            assert update(m)
            for trio in zip(targets, before, sources, strict=True):
                check(*trio, float(m))
        sources[-1].data = sources[-1].clone()
        before = [t.clone() for t in targets]
        assert not update(0.5)
        assert all(map(torch.equal, targets, before))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_graph_capture():
    targets, sources = made(FLOATS, 0), made(FLOATS, 1)
    m, before = torch.tensor(0.5, device=DEVICE, dtype=torch.float64), [t.clone() for t in targets]
    stream = torch.cuda.Stream()  # of the step before, as torch's own recipe has it
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        triton(targets, sources, m)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        triton(targets, sources, m)
    m.fill_(0.25)
    for target, start in zip(targets, before, strict=True):
        target.copy_(start)
    graph.replay()
    for trio in zip(targets, before, sources, strict=True):
        check(*trio, 0.25)
    with (
        pytest.raises(RuntimeError, match="run the step once before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        triton(made(FLOATS, 2), sources, m)
