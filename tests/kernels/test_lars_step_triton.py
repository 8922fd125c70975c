"""``lars_step`` by Triton against the reference: under the interpreter, or on CUDA.

Pieces of 32 elements: several a tensor, ragged at the end.
"""

from __future__ import annotations

import fastssl_kernels.lars_step as kernels
import pytest
import torch

import fastssl
from fastssl.ops import lars_step
from fastssl.ops.lars_step import PLAIN, LarsStep, those
from fastssl.reference import ema_update
from tests.ops.test_lars_step import OPTIONS, SETTINGS, check, copies, layouts, tensors, truth

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's inf - inf
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1,), (0, 3), (31,), (33, 1), (7, 5, 3, 3), ()]
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 32)
    monkeypatch.setattr(kernels, "SUMS", 2)


def made(shapes=SHAPES, *dtypes):
    return tuple([t.to(DEVICE) for t in of] for of in tensors(shapes, *dtypes))


def triton(lists, lr=0.5, ema_momentum=0.7, **options):
    with fastssl.use_backend("triton"):
        lars_step(*lists[:3], lr, averages=lists[3], ema_momentum=ema_momentum,
                  **SETTINGS | options)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_is_the_reference_in_float64(options):
    start = made(SHAPES, F32, None, F32)
    lists = copies(start)
    triton(lists, **options)
    check(lists, truth(start, **options), start)


@pytest.mark.parametrize(
    ("dtype", "grads", "averages"),
    [(BF16, None, F32), (F16, F32, F16), (F32, BF16, BF16), (F64, F16, F32), (F32, None, F64)],
    ids=str,
)
def test_every_dtype(dtype, grads, averages):
    start = made(SHAPES, dtype, grads, averages)
    lists = copies(start)
    triton(lists, order="torch")
    right = truth(start, order="torch")
    right[3][:] = ema_update([t.double() for t in start[3]], lists[0], 0.7)  # of it as stored
    check(lists, right, start)


@pytest.mark.parametrize("m", [0.0, 0.3, 1.0])
def test_scalars_in_tensors(m):
    start = made(SHAPES, F32, None, F32)
    plain, lists = copies(start), copies(start)
    triton(plain, 0.25, m)
    scalars = (torch.tensor(x, dtype=F64, device=DEVICE) for x in (0.25, m))
    triton(lists, *scalars)
    for of, expected in zip(lists, plain, strict=True):
        assert all(torch.equal(t, u) for t, u in zip(of, expected, strict=True))
    if m in (0, 1):
        expected = start[3] if m else lists[0]
        assert all(torch.equal(t, u) for t, u in zip(lists[3], expected, strict=True))


@pytest.mark.parametrize("alike", [True, False])
def test_any_layout_and_an_odd_address(alike):
    start = made([(6, 5, 3, 4)], F32, None, F32)
    for k in range(4):
        lists = [[layouts(of[0])[k if alike else (k + i) % 4]] for i, of in enumerate(start)]
        triton(lists)
        check(lists, truth(start), start)
    lists = [
        [torch.cat([of[0].flatten()[:1], of[0].flatten()])[1:].view(6, 5, 3, 4)] for of in start
    ]
    triton(lists)
    check(lists, truth(start), start)


def test_zero_norms_and_squares_beyond_float32():
    start = made([(4, 9), (5, 20), (2, 3), (8, 8)])
    start[0][0].zero_()
    for of in start[:3]:
        of[2].zero_()
    start[1][1].mul_(1e-30)
    start[2][1].zero_()
    start[1][3].mul_(1e25)
    start[2][3].zero_()
    lists = copies(start)
    triton(lists, weight_decay=0.0)
    right = truth(start, weight_decay=0.0)
    for of, true in zip(lists, right, strict=True):
        for t, expected in zip(of, true, strict=True):
            torch.testing.assert_close(t.double(), expected, rtol=1e-6, atol=0)


def test_repeatable_and_mixed():
    parts = [made([(5, 7), (40, 11)], dtype, None, F32) for dtype in (BF16, F64)]
    start = copies([*a, *b] for a, b in zip(*parts, strict=True))
    results = [copies(start) for _ in range(2)]
    for lists in (*results, *parts):
        triton(lists)
    for of, again, a, b in zip(*results, *parts, strict=True):
        assert all(torch.equal(t, u) for t, u in zip(of, again, strict=True))
        assert all(torch.equal(t, u) for t, u in zip(of, [*a, *b], strict=True))


@pytest.mark.parametrize(
    ("plain", "trust", "gaps"),
    [("none", 0.02, False), ("some", 0.02, False), ("all", 0.02, False), ("some", None, True)],
)
def test_steps_of_the_same_parameters(plain, trust, gaps):
    """Biases and norms among them, in the same launches; gradients lie elsewhere each time."""
    parts = [made(SHAPES, F32, None, F32), made([(5, 7), (40, 11)], F64, BF16, F32)]
    start = copies([*a, *b] for a, b in zip(*parts, strict=True))
    if gaps:  # which are copied anew at every step
        start[2][-1] = torch.zeros(40, 22, dtype=F64, device=DEVICE)[:, ::2]
    start[3][4] = start[0][4]  # a parameter's own average
    again = copies(start)
    again[3][4] = again[0][4]
    flags = [{"none": False, "some": i % 2 == 0, "all": True}[plain] for i in range(len(start[0]))]
    options = SETTINGS | dict(eps=0.0, order="torch", nesterov=False, separate_norms=False)
    options["trust_coefficient"] = trust
    held = []  # so that no address comes again
    with fastssl.use_backend("triton"):
        step = LarsStep(*start, flags)
        for i in range(4):
            if i != 2:
                held.append([g.clone() for g in start[1]])
            grads, lr = held[-1], 0.5 / (1 + i)
            assert step(grads, lr, ema_momentum=0.5, **options)
            for which in set(flags):
                lists = [those(of, flags, which) for of in (again[0], grads, *again[2:])]
                triton(lists, lr, 0.5, **options | (PLAIN if which else {}))
            for of in (0, 2, 3):
                assert all(map(torch.equal, start[of], again[of]))
        assert not step([g.double() for g in grads], 0.5, ema_momentum=0.5, **options)
        start[2][0].data = start[2][0].clone()
        assert not step(grads, 0.5, ema_momentum=0.5, **options)


@pytest.mark.skipif(DEVICE == "cpu", reason="a CUDA graph")
def test_a_captured_step_follows_its_rate():
    """With gradients that the graph itself allocates."""
    start = made(SHAPES, F32, None, F32)
    eager, lists = copies(start), copies(start)
    lr = torch.tensor(0.5, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch's manual has it
        triton(copies(start), lr)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = [g * 1.0 for g in lists[1]]
        triton((lists[0], grads, *lists[2:]), lr)
    for rate in (0.5, 0.25):
        lr.fill_(rate)
        graph.replay()
        triton(eager, rate)
    for of, expected in zip(lists, eager, strict=True):
        assert all(torch.equal(t, u) for t, u in zip(of, expected, strict=True))
