"""``similarity_topk`` by Triton against the reference: under the interpreter, or on CUDA.

Most cases use small tiles: several blocks, segments and trims, ragged at every edge.
"""

from __future__ import annotations

import fastssl_kernels.similarity_lse_plan as shared
import fastssl_kernels.similarity_topk as kernels
import pytest
import torch

import fastssl
from fastssl.ops import similarity_topk
from fastssl.reference import similarity_topk as reference

pytestmark = [
    pytest.mark.gpu,  # and here by the interpreter
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's 1/0
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def small(monkeypatch):
    """Tiles of 16 and little parallelism, whatever the chip."""
    tiles = dict.fromkeys(kernels.TILES, kernels.Tiles(16, 16, 4, 2, step=32))
    monkeypatch.setattr(kernels, "TILES", tiles)


def rows(count, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * count + d + seed)
    return torch.randn(count, d, generator=generator).to(DEVICE, dtype)


def small_integers(count, d, dtype=torch.float32, seed=0):
    """Products without rounding, and so with many exact ties."""
    generator = torch.Generator().manual_seed(1000 * count + d + seed)
    return torch.randint(-2, 3, (count, d), generator=generator).to(DEVICE, dtype)


def triton(*inputs, **options):
    with fastssl.use_backend("triton"):
        return similarity_topk(*inputs, **options)


def check(queries, bank, k, exact=False, normalize=False):
    values, indices = triton(queries, bank, k, normalize=normalize)
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64
    n = len(bank)
    wide = queries.double(), bank.double()
    everything, order = reference(*wide, n, normalize=normalize)
    if exact:
        assert torch.equal(indices, order[:, :k])
        assert torch.equal(values.double(), everything[:, :k])
        return
    lengths = [1.0, 1.0] if normalize else [t.norm(dim=1).max().item() for t in wide]
    bound = 2.0**-21 * lengths[0] * lengths[1]
    similarity = torch.empty_like(everything).scatter_(1, order, everything)  # [Q, K]
    assert (values - everything[:, :k]).abs().max() <= bound
    assert (values - similarity.gather(1, indices)).abs().max() <= bound
    level = (values[:, 1:] == values[:, :-1]) & (indices[:, 1:] > indices[:, :-1])
    assert ((values[:, 1:] < values[:, :-1]) | level).all()


@pytest.mark.usefixtures("small")
@DTYPES
@pytest.mark.parametrize("normalize", [False, True])
def test_every_dtype(normalize, dtype):
    check(rows(18, 24, dtype), rows(130, 24, dtype, seed=1), 5, normalize=normalize)


# (Q, K, D, k): one of everything, a whole bank, wide rows by chunks, more neighbours than tiles.
SHAPES = [(1, 1, 1, 1), (3, 7, 5, 7), (17, 100, 40, 1), (5, 150, 9, 33), (33, 90, 3, 17)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size(shape):
    q, n, d, k = shape
    check(rows(q, d), rows(n, d, seed=1), k, normalize=True)
    check(small_integers(q, d), small_integers(n, d, seed=1), k, exact=True)


@DTYPES
def test_shipped_tiles(dtype):
    check(small_integers(65, 17, dtype), small_integers(130, 17, dtype, seed=1), 20, exact=True)


@pytest.mark.usefixtures("small")
def test_the_most_neighbours():
    check(small_integers(1, 3), small_integers(1030, 3, seed=1), kernels.MOST, exact=True)
    with pytest.raises(ValueError, match="k must be at most 1024 on CUDA, not 1025"):
        triton(rows(1, 3), rows(1030, 3), kernels.MOST + 1)


@pytest.mark.usefixtures("small")
def test_sorted_banks():
    """Every entry better than all before it, or none."""
    bank = torch.arange(200.0, device=DEVICE)[:, None]
    check(torch.ones(2, 1, device=DEVICE), bank, 9, exact=True)
    check(torch.ones(2, 1, device=DEVICE), -bank, 9, exact=True)


@pytest.mark.usefixtures("small")
def test_one_processor_and_many(monkeypatch):
    """The same result, whatever the segments; and by groups of queries."""
    queries, bank = small_integers(20, 6), small_integers(100, 6, seed=1)
    plan = shared._plan
    for processors in (1, 64):
        device = shared.Device("hopper", processors, interpreted=DEVICE == "cpu")
        monkeypatch.setattr(kernels, "_plan", lambda x, d=device: plan(x)._replace(device=d))
        check(queries, bank, 4, exact=True)
    monkeypatch.setattr(kernels, "BYTES", 8 * 32 * 17)
    check(queries, bank, 4, exact=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_counts_as_the_largest(normalize):
    queries, bank = rows(6, 8), rows(90, 8, seed=1)
    bank[70, 3] = NAN
    bank[40, 2] = INF if normalize else NAN  # ∞ / ∞
    queries[2, 7] = NAN
    values, indices = triton(queries, bank, 4, normalize=normalize)
    right, order = reference(queries, bank, 4, normalize=normalize)
    assert torch.equal(indices, order)
    torch.testing.assert_close(values, right, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("small")
def test_infinities_zeros_and_a_bank_of_nothing_but_nan():
    bank = torch.tensor([[1.0], [-INF], [INF], [0.0], [-0.0], [-INF]], device=DEVICE)
    values, indices = triton(torch.ones(1, 1, device=DEVICE), bank, 6)
    assert values.tolist() == [[INF, 1, 0, 0, -INF, -INF]]
    assert indices.tolist() == [[2, 0, 3, 4, 1, 5]]
    nothing = torch.full((70, 2), NAN, device=DEVICE)
    values, indices = triton(torch.ones(3, 2, device=DEVICE), nothing, 5)
    assert values.isnan().all()
    assert torch.equal(indices, torch.arange(5, device=DEVICE).expand(3, 5))
    values, indices = triton(torch.zeros(3, 2, device=DEVICE), rows(70, 2), 5, normalize=True)
    assert not values.any()
    assert torch.equal(indices, torch.arange(5, device=DEVICE).expand(3, 5))


@pytest.mark.usefixtures("small")
def test_very_long_and_very_short_rows_only_have_a_direction():
    queries, bank = rows(5, 9), rows(40, 9, seed=1)
    bank[7] = 0
    right, order = reference(queries.double(), bank.double(), 40, normalize=True)
    lengths = 10.0 ** torch.linspace(-11, 16, 40, device=DEVICE)[:, None]
    values, indices = triton(queries * 1e-6, bank * lengths, 40, normalize=True)
    assert (values - right).abs().max() <= 2.0**-21
    assert torch.equal(indices, order)


@pytest.mark.usefixtures("small")
def test_not_contiguous():
    queries = torch.stack([rows(20, 9), rows(20, 9, seed=1)], 2)[:, :, 0]
    bank = rows(9, 46, seed=2).T
    assert not queries.is_contiguous()
    check(queries, bank, 3, normalize=True)
