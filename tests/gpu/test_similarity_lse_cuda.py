"""``similarity_lse`` by Triton on a CUDA device (rehearsed by the interpreter)."""

from __future__ import annotations

import pytest
import torch

from fastssl import reference
from fastssl.ops import similarity_lse
from tests.numerics import GRADIENT

DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])

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


def leaves(m, k, d, dtype, device):
    generator = torch.Generator().manual_seed(m * 100 + d)
    x, y = (
        None if rows is None else torch.randn(rows, d, generator=generator).to(device, dtype)
        for rows in (m, k)
    )
    return x, y, torch.tensor(3.0, device=device)


def gradients(op, x, y, scale, upstream, options):
    wanted = [None if t is None else t.detach().clone().requires_grad_() for t in (x, y, scale)]
    lse, pair = op(*wanted, **options)
    if "pair_offset" not in options:
        pair = pair.detach()
    total = (lse * upstream[0]).sum() + (pair * upstream[1]).sum()
    return lse, pair, torch.autograd.grad(total, [t for t in wanted if t is not None])


@DTYPES
@pytest.mark.parametrize(("m", "k", "d", "options"), CASES)
def test_right(m, k, d, options, dtype, device, fits):
    fits(m, k or m, d)
    x, y, scale = leaves(m, k, d, dtype, device)
    if not options.get("normalize"):
        x, y = x / d**0.5, None if y is None else y / d**0.5
    upstream = torch.randn(2, m, device=device, dtype=torch.float64)
    lse, pair, got = gradients(similarity_lse, x, y, scale, upstream, options)
    wide = (x.double(), None if y is None else y.double(), scale.double())
    want_lse, want_pair, want = gradients(reference.similarity_lse, *wide, upstream, options)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-6, atol=5e-6)
    torch.testing.assert_close(pair.double(), want_pair, rtol=1e-6, atol=5e-6)
    for one, other in zip(got, want, strict=True):
        error = (one.double() - other).norm().item()
        assert error <= GRADIENT[dtype] * other.norm().item() + 1e-5 * upstream.norm().item() * (
            1 if dtype == torch.float32 else 50
        )


def test_nothing_left_to_sum(device):
    """N = 1: each row's only columns are itself and its pair."""
    x = torch.randn(2, 4, device=device).requires_grad_()
    lse, _ = similarity_lse(x, self_offset=0, pair_offset=1, exclude_pair=True)
    assert lse.tolist() == [float("-inf")] * 2
    assert torch.equal(torch.autograd.grad(lse.sum(), x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("symmetric", [True, False])
def test_opcheck(symmetric, cuda):
    """The raw ops as torch sees them: schema, fake implementation, no aliasing, tracing."""
    x, y, scale = leaves(40, None if symmetric else 56, 32, torch.float32, cuda)
    options = (1.0, True, 0, None, False)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    fwd = torch.ops.fastssl.similarity_lse_fwd.default
    torch.library.opcheck(fwd, (x, y, scale, *options), test_utils=tests)
    lse, _ = fwd(x, y, scale, *options)
    needs = (True, not symmetric, True)
    torch.library.opcheck(
        torch.ops.fastssl.similarity_lse_bwd.default,
        (torch.rand_like(lse), torch.zeros_like(lse), x, y, scale, lse, *options, *needs),
        test_utils=tests,
    )
