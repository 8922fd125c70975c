"""NT-Xent by Triton on a CUDA device (rehearsed by the interpreter): right, repeatable, lean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.functional import nt_xent
from tests.numerics import GRADIENT, LOSS, UNIT, gradient_terms

DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])

LEARNED = pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])

# N, D, temperature
CASES = [
    (1, 8, 0.5),
    (2, 1, 0.5),
    (5, 17, 0.1),
    (16, 32, 0.07),
    (33, 3, 0.005),
    (129, 64, 0.1),
    (257, 128, 0.5),
    (512, 128, 0.05),
    (1021, 96, 1.0),
    (300, 256, 0.2),
    (150, 1024, 0.1),
    (4096, 128, 0.1),
]
HALVES = {(5, 17), (257, 128), (150, 1024), (4096, 128)}


def views(n: int, d: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n * 1000 + d)
    shared, *noise = (torch.randn(n, d, generator=generator) for _ in range(3))
    return tuple((shared + e).to(device, dtype) for e in noise)


def run(z0, z1, temperature, upstream, **options):
    """Rows of the loss, and the gradients of both views (and of a temperature tensor)."""
    learned = isinstance(temperature, Tensor)
    leaves = [t.detach().clone().requires_grad_() for t in (z0, z1, temperature)[: 2 + learned]]
    arguments = leaves if learned else [*leaves, temperature]
    rows = nt_xent(*arguments, reduction="none", **options)
    return rows, torch.autograd.grad(rows, leaves, upstream.to(rows.dtype))


def assert_right(z0, z1, temperature: float, learned: bool, **options):
    """Ours against the reference in float64, with random upstream gradients, by the measure of
    tests/functional: the published bounds, and what similarities in float32 cannot know.

    Kernels know a temperature that is a number beforehand (``learned`` False), and may then do
    without a running maximum: another path than for one in a tensor.
    """
    t = torch.tensor(temperature, device=z0.device) if learned else temperature
    upstream = torch.rand(2 * len(z0), device=z0.device) + 0.5
    rows, gradients = run(z0, z1, t, upstream, **options)
    wide = t.double() if learned else t
    true_rows, true = run(z0.double(), z1.double(), wide, upstream, **options)
    assert rows.dtype == torch.float32
    largest = 1.0
    if not options.get("normalize", True):
        largest = torch.cat([z0, z1]).double().norm(dim=1).max().item() ** 2
    logit = largest * UNIT / temperature
    slack = LOSS * true_rows.abs() + 2 * logit * true_rows.abs().clamp(max=1) + 1e-37
    excess = ((rows.double() - true_rows).abs() / slack).max()
    assert excess <= 1, f"a row's loss: {excess:.2f} of its bound"
    with z0.device:  # for the tensors it makes
        terms = gradient_terms(z0, z1, temperature, upstream, **options)
    for name, mine, right, size in zip(NAMES, gradients, true, terms, strict=False):
        assert torch.isfinite(mine).all(), name
        error = (mine.double() - right).norm()
        # Below `tiny` a gradient of that dtype is no longer a normal number.
        tiny = torch.finfo(mine.dtype).tiny * mine.numel() ** 0.5
        bound = GRADIENT[z0.dtype] * right.norm() + 2 * (UNIT + logit) * size.norm() + tiny
        assert error <= bound, f"{name}: {error:.2e} above {bound:.2e}, size {right.norm():.2e}"


NAMES = ("z0", "z1", "temperature")


@DTYPES
@LEARNED
@pytest.mark.parametrize(("n", "d", "temperature"), CASES)
def test_right(n, d, temperature, learned, dtype, device, fits):
    if dtype == torch.float16 and (n, d) not in HALVES:
        pytest.skip("float16 is tried at a few shapes: each is another kernel to compile")
    fits(2 * n, 2 * n, d)
    assert_right(*views(n, d, dtype, device), temperature, learned)


@DTYPES
@LEARNED
@pytest.mark.parametrize(
    "kind", ["collapsed", "duplicates", "opposite", "zeros", "one zero", "tiny", "strided"]
)
@pytest.mark.parametrize("n", [12, 200])
def test_degenerate(kind, n, learned, dtype, device, fits):
    d = 24
    fits(2 * n, 2 * n, d)
    z0, z1 = views(n, d, dtype, device)
    if kind == "collapsed":
        z0 = z1 = z0[:1].expand(n, d).contiguous()
    elif kind == "duplicates":
        z1 = z0.clone()
    elif kind == "opposite":
        z1 = -z0
    elif kind == "zeros":
        z0, z1 = torch.zeros_like(z0), torch.zeros_like(z1)
    elif kind == "one zero":
        z0 = z0.clone()
        z0[3] = 0
    elif kind == "tiny":
        z0, z1 = z0 * 1e-3, z1 * 1e-3
    elif kind == "strided":
        z0 = torch.stack([z0, z1], 2)[:, :, 0]
        z1 = torch.cat([z1, z0], 1)[:, :d]
        assert not z0.is_contiguous()
        assert not z1.is_contiguous()
    assert_right(z0, z1, 0.1, learned)


@DTYPES
@LEARNED
def test_similarities_in_the_hundreds(learned, dtype, device, fits):
    """Unnormalised rows: no maximum is known beforehand."""
    n, d = 20, 16
    fits(2 * n, 2 * n, d)
    z0, z1 = (5 * z for z in views(n, d, dtype, device))
    assert (z0.float() @ z1.float().T).abs().max() > 100
    assert_right(z0, z1, 1.0, learned, normalize=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_shows(value, device):
    z0, z1 = views(6, 8, torch.float32, device)
    z0[2, 3] = value
    assert nt_xent(z0, z1).isnan()


def test_gradient_of_one_view_only(device):
    z0, z1 = views(6, 8, torch.float32, device)
    both = [z.clone().requires_grad_() for z in (z0, z1)]
    want = torch.autograd.grad(nt_xent(*both), both)
    one = z1.clone().requires_grad_()
    nt_xent(z0, one).backward()
    assert torch.equal(one.grad, want[1])


def test_twice_in_one_graph(device):
    z0, z1 = (z.requires_grad_() for z in views(6, 8, torch.float32, device))
    nt_xent(z0, z1, 0.2).backward(retain_graph=True)
    single = z0.grad.clone()
    z0.grad = z1.grad = None
    (nt_xent(z0, z1, 0.2) + nt_xent(z0, z1, 0.2)).backward()
    torch.testing.assert_close(z0.grad, 2 * single)


@DTYPES
@LEARNED
@pytest.mark.parametrize(("n", "d"), [(13, 16), (1000, 128)])
def test_bitwise_the_same_twice(n, d, learned, dtype, device, fits):
    fits(2 * n, 2 * n, d)
    z0, z1 = views(n, d, dtype, device)
    upstream, t = torch.rand(2 * n, device=device), 0.1
    if learned:
        t = torch.tensor(t, device=device)
    rows, gradients = run(z0, z1, t, upstream)
    for _ in range(1 if device == "cpu" else 5):
        again, others = run(z0, z1, t, upstream)
        assert torch.equal(rows, again)
        for one, other in zip(gradients, others, strict=True):
            assert torch.equal(one, other)


def test_no_host_waits_for_the_device(cuda):
    z0, z1 = (z.requires_grad_() for z in views(500, 128, torch.bfloat16, cuda))
    t = torch.tensor(0.1, device=cuda, requires_grad=True)
    nt_xent(z0, z1, t).backward()  # compiles
    nt_xent(z0, z1, 0.1).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        nt_xent(z0, z1, t).backward()
        nt_xent(z0, z1, 0.1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@DTYPES
@LEARNED
def test_cuda_graph(learned, dtype, cuda):
    """Captured once, replayed on new data: bitwise what the same calls give without a graph."""
    z0, z1 = (z.requires_grad_() for z in views(300, 64, dtype, cuda))
    t = torch.tensor(0.1, device=cuda, requires_grad=True)
    leaves = (z0, z1, t) if learned else (z0, z1)

    def step():
        loss = nt_xent(z0, z1, t if learned else 0.1)
        return (loss, *torch.autograd.grad(loss, leaves))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf, new in zip((z0, z1), views(300, 64, dtype, cuda), strict=True):
            leaf.copy_(new.flip(0))
        t.fill_(0.2)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, step(), strict=True):
        assert torch.equal(got, want)


def test_compiles_whole(cuda):
    """``torch.compile(fullgraph=True)``, normalisation before and arithmetic after included."""

    def loss(z0, z1, t):
        return nt_xent(z0 * 1.5, z1, t) * 2

    leaves = [z.requires_grad_() for z in views(300, 64, torch.float32, cuda)]
    leaves.append(torch.tensor(0.1, device=cuda, requires_grad=True))
    want = loss(*leaves)
    wants = torch.autograd.grad(want, leaves)
    got = torch.compile(loss, fullgraph=True)(*leaves)
    gots = torch.autograd.grad(got, leaves)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(gots, wants, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_autocast_changes_nothing(cuda):
    z0, z1 = views(100, 64, torch.float32, cuda)
    want = nt_xent(z0, z1, 0.1)
    with torch.autocast("cuda", torch.bfloat16):
        got = nt_xent(z0, z1, 0.1)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)


def test_second_device_stream(cuda):
    """Work on a side stream: nothing is launched on another one."""
    z0, z1 = views(1000, 128, torch.bfloat16, cuda)
    want = nt_xent(z0, z1, 0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = nt_xent(z0, z1, 0.1)
    stream.synchronize()
    assert torch.equal(got, want)


@pytest.mark.parametrize("rows", [8192, 65536])
def test_memory_grows_with_rows_alone(rows, cuda):
    """The promise for M = 1,048,576 is 1.2 GB above the inputs: 1,144 bytes a row."""
    z0, z1 = (z.requires_grad_() for z in views(rows // 2, 128, torch.bfloat16, cuda))
    nt_xent(z0, z1, 0.1).backward()
    z0.grad = z1.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nt_xent(z0, z1, 0.1).backward()
    grown = torch.cuda.max_memory_allocated() - before
    assert grown <= 1144 * rows + (8 << 20)
