"""``similarity_lse`` by Triton against the reference in float64: under the interpreter, or on CUDA.

The tiles that are shipped are far larger than what the interpreter can take many of, so most
cases use small ones: several blocks, segments and splits, ragged at every edge.
"""

from __future__ import annotations

import fastssl_kernels.similarity_lse as kernels
import pytest
import torch

import fastssl
from fastssl.functional import nt_xent
from fastssl.ops import similarity_lse

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's log(0)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRADIENT = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", list(GRADIENT), ids=lambda d: str(d)[6:])
NT_XENT = {"self_offset": 0, "exclude_pair": True}


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip."""
    tiles = {key: kernels.Tiles(16, 16, 4, 2, old.step and 32) for key, old in _shipped().items()}
    monkeypatch.setattr(kernels, "TILES", {True: tiles, False: tiles})


def _shipped():
    return kernels.TILES[True]


def rows(m, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * m + d + seed)
    return torch.randn(m, d, generator=generator).to(DEVICE, dtype)


def run(backend, x, y, scale, upstream, needs=(True, True, True), **options):
    """lse, pair and the gradients that are needed (None for the others)."""
    leaves = [
        t.detach().clone().requires_grad_(need) if isinstance(t, torch.Tensor) else t
        for t, need in zip((x, y, scale), needs, strict=True)
    ]
    with fastssl.use_backend(backend):
        lse, pair = similarity_lse(*leaves, **options)
        finite = torch.where(lse.isinf(), 0.0, lse)  # a row of nothing: lse −inf, gradient zero
        ((finite * upstream[0]).sum() + (pair * upstream[1]).sum()).backward()
    gradients = [t.grad if isinstance(t, torch.Tensor) else None for t in leaves]
    return lse.detach(), pair.detach(), *gradients


def check(x, y, scale, needs=(True, True, True), floor=1e-6, **options):
    upstream = torch.randn(2, len(x), dtype=torch.float64, device=x.device)
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (x, y, scale)]
    got = run("triton", x, y, scale, upstream, needs, **options)
    want = run("reference", *wide, upstream, needs, **options)
    # A similarity in float32 is uncertain by its rounding, and a softmax by that of its logits.
    longest = [t.double().norm(dim=1).max().item() for t in (x, x if y is None else y)]
    unit = 2.0**-23 * float(scale) * (1.0 if options.get("normalize") else longest[0] * longest[1])
    for name, one, other in zip(("lse", "pair"), got, want, strict=False):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=unit, msg=lambda m, n=name: n + m)
    for name, one, other, like in zip("xys", got[2:], want[2:], (x, y, scale), strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == like.dtype
        assert one.shape == like.shape
        error, size = (one.double() - other).norm().item(), other.norm().item()
        most = GRADIENT[x.dtype] if name != "s" else max(1e-5, 1e-2 * GRADIENT[x.dtype])
        most = max(most, unit)
        # Terms as large as scale · upstream may cancel down to nothing.
        least = max(floor, unit * upstream.norm().item())
        assert error <= most * size + least, f"d_{name}: {error / max(size, 1e-30):.1e}"


OPTIONS = {
    "plain": (40, None, {}),
    "self": (40, None, {"self_offset": 0}),
    "half": (40, None, {"self_offset": 20}),
    "nt_xent": (70, None, {**NT_XENT, "pair_offset": 35}),
    "even blocks": (64, None, {**NT_XENT, "pair_offset": 32}),
    "odd pair": (53, None, {"self_offset": 0, "pair_offset": 17}),
    "columns": (37, 50, {}),
    "columns, self": (37, 50, {"self_offset": 45}),
    "columns, pair": (37, 50, {"pair_offset": 20}),
    "few columns": (50, 7, {"self_offset": 3, "pair_offset": 5, "exclude_pair": True}),
    "many columns": (5, 90, {"self_offset": 2, "pair_offset": 88, "exclude_pair": True}),
    "one column": (20, 1, {"pair_offset": 0}),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mode", ["bounded", "large", "tensor", "products"])
@pytest.mark.parametrize("case", OPTIONS)
def test_every_mode(case, mode):
    m, k, options = OPTIONS[case]
    scale = {"bounded": 7.0, "large": 120.0}.get(mode, torch.tensor(3.0, device=DEVICE))
    check(
        rows(m, 20), None if k is None else rows(k, 20, seed=1), scale,
        normalize=mode != "products", **options,
    )  # fmt: skip


@pytest.mark.usefixtures("small")
@DTYPES
@pytest.mark.parametrize("case", ["nt_xent", "columns, pair"])
@pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
def test_every_dtype(case, scale, dtype):
    m, k, options = OPTIONS[case]
    scale = torch.tensor(5.0, device=DEVICE) if scale is None else scale
    y = None if k is None else rows(k, 24, dtype, seed=1)
    check(rows(m, 24, dtype), y, scale, normalize=True, **options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("m", "d"), [(1, 5), (2, 1), (3, 3), (16, 16), (31, 64), (33, 300), (18, 1024), (20, 129)]
)
def test_every_size(m, d, scale):
    scale = torch.tensor(5.0, device=DEVICE) if scale is None else scale
    check(rows(m, d), None, scale, normalize=True, self_offset=0)


@DTYPES
@pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
@pytest.mark.parametrize(("m", "d"), [(130, 128), (257, 17)])
def test_shipped_tiles(m, d, scale, dtype):
    scale = torch.tensor(5.0, device=DEVICE) if scale is None else scale
    options = {"self_offset": 0, "pair_offset": m // 2, "exclude_pair": m % 2 == 0}
    check(rows(m, d, dtype), None, scale, normalize=True, **options)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["collapsed", "duplicates", "opposite", "zeros", "one zero"])
@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0])
def test_degenerate_nt_xent(kind, temperature):
    n, d = 20, 24
    z0, z1 = rows(n, d), rows(n, d, seed=1)
    if kind == "collapsed":
        z0 = z1 = z0[:1].expand(n, d)
    elif kind == "duplicates":
        z1 = z0.clone()
    elif kind == "opposite":
        z1 = -z0
    elif kind == "zeros":
        z0, z1 = torch.zeros_like(z0), torch.zeros_like(z1)
    else:
        z0[3] = 0
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        leaves = [z.detach().to(dtype).clone().requires_grad_() for z in (z0, z1)]
        with fastssl.use_backend(backend):
            loss = nt_xent(*leaves, temperature)
            loss.backward()
        results.append((loss.double(), torch.stack([z.grad.double() for z in leaves])))
    (loss, gradient), (want_loss, want) = results
    # A similarity in float32 is uncertain by 2^-23, and the interpreter's products round alike
    # vectors differently, as their memory happens to be aligned.
    torch.testing.assert_close(loss, want_loss, rtol=1e-6, atol=2.0**-23 / temperature)
    assert gradient.isfinite().all()
    # Terms of size 1/(norm · temperature · √rows) cancel: no more digits than theirs are left.
    assert (gradient - want).norm() <= 1e-5 * want.norm() + 1e-6 / temperature / d**0.5


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)], ids=str
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_that_are_needed(needs, symmetric):
    needs = tuple(bool(n) for n in needs)
    if symmetric and not (needs[0] or needs[2]):
        pytest.skip("y is None")
    y = None if symmetric else rows(30, 8, seed=1)
    check(rows(20, 8), y, torch.tensor(4.0, device=DEVICE), needs, normalize=True, pair_offset=3)


@pytest.mark.usefixtures("small")
def test_not_contiguous():
    x = torch.stack([rows(20, 9), rows(20, 9, seed=1)], 2)[:, :, 0]
    y = rows(9, 26, seed=2).T
    assert not x.is_contiguous()
    check(x, y, 4.0, normalize=True, pair_offset=1)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
def test_groups_of_very_many_rows(scale, monkeypatch):
    """Buffers too small for all distances, or for all rows, at once."""
    monkeypatch.setattr(kernels, "ROW_SUMS_BYTES", 2 * 4 * 100)
    monkeypatch.setattr(kernels, "SPLITS_BYTES", 32 * 4 * 12)
    scale = torch.tensor(5.0, device=DEVICE) if scale is None else scale
    check(rows(100, 12), None, scale, normalize=True, **NT_XENT, pair_offset=50)
    check(rows(70, 12), rows(40, 12, seed=1), scale, normalize=True, pair_offset=2)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [10.0, None], ids=["number", "tensor"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_shows(value, scale, normalize):
    scale = torch.tensor(5.0, device=DEVICE) if scale is None else scale
    x = rows(40, 12)
    x[33, 5] = value
    x = x.requires_grad_()
    with fastssl.use_backend("triton"):
        lse, pair = similarity_lse(
            x, None, scale, normalize=normalize, self_offset=0, pair_offset=20
        )
        assert lse.isnan().all()
        assert pair[[13, 33]].isnan().all()
        lse.sum().backward()
    assert x.grad.isnan().all()


@pytest.mark.usefixtures("small")
def test_nan_scale_shows():
    x, scale = rows(20, 12).requires_grad_(), torch.tensor(float("nan"), device=DEVICE)
    with fastssl.use_backend("triton"):
        lse, pair = similarity_lse(x, None, scale.requires_grad_(), normalize=True, pair_offset=3)
        (lse + pair).sum().backward()
    for t in (lse, pair, x.grad, scale.grad):
        assert t.isnan().all()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [1e-15, 1e-9, 1e9, 1e15])
def test_any_length(size):
    """Norms below 1e-12 have no direction; all others only turn."""
    x = rows(40, 12)
    x[3] *= size
    check(x, None, 10.0, normalize=True, self_offset=0, floor=1e-6 / min(1.0, size))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("upstream", [1e-9, 1e6])
def test_float16_gradients_keep_their_range(upstream):
    """G has entries far below what float16 can hold, and far above."""
    x = rows(40, 12, torch.float16)
    scaled = torch.full((2, 40), upstream, dtype=torch.float64, device=DEVICE)
    got = run("triton", x * 8, None, 5.0, scaled, normalize=True, self_offset=0)[2]
    want = run("reference", x.double() * 8, None, 5.0, scaled, normalize=True, self_offset=0)[2]
    want = want.to(torch.float16)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=want.abs().max().item() * 1e-3 + 6e-8)
