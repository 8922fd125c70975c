"""``similarity_lse`` by Triton on a CUDA device (rehearsed by the interpreter)."""

from __future__ import annotations

import fastssl_kernels.similarity_lse as kernels
import pytest
import torch
from torch import Tensor

from fastssl import reference
from fastssl.ops import similarity_lse, similarity_lse_both
from tests.numerics import GRADIENT, LOSS

DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])
LEARNED = pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
# Sums of the rows; of both sides; of the rows, the columns frozen: a queue.
FORMS = pytest.mark.parametrize("form", ["rows", "both", "frozen"])

# M, K (None: the rows themselves), D, options
CASES = [
    (1, 1, 4, {}),
    (7, 13, 5, {}),
    (9, None, 8, {}),
    (9, None, 8, {"self_offset": 0}),
    (10, None, 16, {"self_offset": 0, "pair_offset": 5, "exclude_pair": True}),
    (10, None, 16, {"self_offset": 0, "pair_offset": 3}),
    (6, 11, 8, {"self_offset": 4}),
    (6, 11, 8, {"pair_offset": 2, "exclude_pair": True, "self_offset": 7}),
    (6, 11, 8, {"pair_offset": 2, "normalize": True}),
    (256, 4096, 128, {"pair_offset": 0, "normalize": True}),
    (1000, 777, 65, {"pair_offset": 700, "exclude_pair": True, "normalize": True}),
    (2048, None, 128, {"self_offset": 0, "normalize": True}),
    (1001, None, 200, {"self_offset": 0, "pair_offset": 17, "normalize": True}),
]
# Where a scale that is a number is tried: kernels then know the largest logit of unit rows.
NUMBERS = {(6, 11), (256, 4096), (1000, 777)}


def leaves(m, k, d, dtype, device):
    generator = torch.Generator().manual_seed(m * 100 + d)
    x, y = (
        None if rows is None else torch.randn(rows, d, generator=generator).to(device, dtype)
        for rows in (m, k)
    )
    return x, y, torch.tensor(3.0, device=device)


def run(form, op, tensors, upstream, options):
    """Sums, and the gradients of all tensors but frozen ones."""
    wanted = [t.detach().clone().requires_grad_() if isinstance(t, Tensor) else t for t in tensors]
    if form == "frozen":
        wanted[1].requires_grad_(False)
    sums = op(*wanted, **options)
    total = sum((one * d).sum() for one, d in zip(sums, upstream, strict=False))
    leaves = [t for t in wanted if isinstance(t, Tensor) and t.requires_grad]
    return [t.detach() for t in sums], torch.autograd.grad(total, leaves)


def op(form):
    return similarity_lse_both if form == "both" else similarity_lse


@FORMS
@DTYPES
@LEARNED
@pytest.mark.parametrize(("m", "k", "d", "options"), CASES)
def test_right(m, k, d, options, learned, dtype, form, device, fits):
    fits(m, k or m, d)
    if k is None and form != "rows":
        pytest.skip("rows that are their own columns have one sum")
    if not learned and (m, k) not in NUMBERS:
        pytest.skip("a number is tried at a few shapes: each is another kernel to compile")
    x, y, scale = leaves(m, k, d, dtype, device)
    if not options.get("normalize"):
        x, y = x / d**0.5, None if y is None else y / d**0.5
    upstream = [torch.randn(n, device=device, dtype=torch.float64) for n in (m, m, k or m)]
    tensors = (x, y, scale if learned else scale.item())
    sums, got = run(form, op(form), tensors, upstream, options)
    wide = [t.double() if isinstance(t, Tensor) else t for t in tensors]
    truth = getattr(reference, op(form).__name__)
    true_sums, want = run(form, truth, wide, upstream, options)
    for one, other in zip(sums, true_sums, strict=True):
        torch.testing.assert_close(one, other, rtol=LOSS, atol=5e-6)
    size = torch.cat(upstream).norm().item()
    for one, other in zip(got, want, strict=True):
        error = (one.double() - other).norm().item()
        floor = 1e-6 if dtype == torch.float32 else 5e-4
        assert error <= GRADIENT[dtype] * other.norm().item() + floor * size


@FORMS
@pytest.mark.parametrize("k", [40, 4096])
def test_large_logits_keep_their_digits(k, form, device, fits):
    """float32 at a temperature of 0.005: as if by float64, where that is no slower."""
    m, d = 20 if k == 40 else 256, 24 if k == 40 else 128
    fits(m, k, d)
    x, y, _ = leaves(m, k, d, torch.float32, device)
    if not kernels._device(x).doubles:
        pytest.skip("float64 is slow here: products have float32's digits")
    tensors = (x, y, torch.tensor(200.0, device=device))
    options = {"normalize": True, "pair_offset": 1}
    upstream = [torch.rand(n, device=device, dtype=torch.float64) for n in (m, m, k)]
    sums, got = run(form, op(form), tensors, upstream, options)
    truth = getattr(reference, op(form).__name__)
    true_sums, want = run(form, truth, [t.double() for t in tensors], upstream, options)
    for one, other in zip(sums, true_sums, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=LOSS)
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).norm() <= GRADIENT[torch.float32] * other.norm()


@FORMS
@DTYPES
@pytest.mark.parametrize("k", [40, 4096])
def test_bitwise_the_same_twice(k, dtype, form, device, fits):
    fits(20, k, 24)
    x, y, scale = leaves(20, k, 24, dtype, device)
    upstream = [torch.rand(n, device=device, dtype=torch.float64) for n in (20, 20, k)]
    options = {"normalize": True, "pair_offset": 3}
    one, other = (run(form, op(form), (x, y, scale), upstream, options) for _ in range(2))
    for a, b in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True):
        assert torch.equal(a, b)


@FORMS
def test_no_host_waits_for_the_device(form, cuda):
    tensors = leaves(256, 4096, 128, torch.bfloat16, cuda)
    upstream = [torch.rand(n, device=cuda, dtype=torch.float64) for n in (256, 256, 4096)]
    run(form, op(form), tensors, upstream, {"normalize": True})  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(form, op(form), tensors, upstream, {"normalize": True})
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_left_to_sum(device):
    """N = 1: each row's only columns are itself and its pair."""
    x = torch.randn(2, 4, device=device).requires_grad_()
    lse, _ = similarity_lse(x, self_offset=0, pair_offset=1, exclude_pair=True)
    assert lse.tolist() == [float("-inf")] * 2
    assert torch.equal(torch.autograd.grad(lse.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("form", ["symmetric", "rows", "both", "frozen"])
def test_opcheck(form, cuda):
    """The raw ops as torch sees them: schema, fake implementation, no aliasing, tracing."""
    x, y, scale = leaves(40, None if form == "symmetric" else 56, 32, torch.float32, cuda)
    options = (1.0, True, 0, None, False)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    fwd = torch.ops.fastssl.similarity_lse_fwd.default
    arguments = (x, y, scale, *options, form == "both", form == "frozen")
    torch.library.opcheck(fwd, arguments, test_utils=tests)
    lse, _, column_lse, _ = fwd(*arguments)
    upstream = (torch.rand_like(lse), torch.zeros_like(lse))
    columns = (torch.rand_like(column_lse), column_lse) if form == "both" else (None, None)
    torch.library.opcheck(
        torch.ops.fastssl.similarity_lse_bwd.default,
        (*upstream, columns[0], x, y, scale, lse, columns[1], *options, True, y is not None, True),
        test_utils=tests,
    )
