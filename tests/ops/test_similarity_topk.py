"""similarity_topk: exactly the k largest, in one order, whoever computes them."""

from __future__ import annotations

import sys

import pytest
import torch

import fastssl
from fastssl.ops import similarity_topk
from fastssl.ops.similarity_topk import _reference_fwd
from fastssl.reference import similarity_topk as reference
from tests.cases import WITH_ISAS
from tests.numerics import UNIT

raw = torch.ops.fastssl.similarity_topk_fwd
BACKENDS = ["native", "reference"]  # Triton: tests/kernels
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
# (Q, K, D, k): one of everything, all of a bank, sizes around the panels, banks in segments.
SHAPES = [
    (1, 1, 1, 1),
    (3, 7, 5, 7),
    (8, 48, 16, 3),
    (9, 49, 16, 49),
    (37, 211, 19, 5),
    (5, 47, 300, 20),
    (130, 1009, 33, 200),
    (61, 9001, 8, 20),
    (600, 701, 24, 1),
]
INF, NAN = float("inf"), float("nan")


def rows(count, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(1000 * count + d + seed)
    return torch.randn(count, d, generator=generator).to(dtype)


def small_integers(count, d, dtype=torch.float32, seed=0):
    """Products without rounding, and so with many exact ties."""
    generator = torch.Generator().manual_seed(1000 * count + d + seed)
    return torch.randint(-2, 3, (count, d), generator=generator).to(dtype)


def sorted_pairs(values, indices):
    """Whether every row is ordered: larger values first, equal ones by index."""
    falls = values[:, 1:] < values[:, :-1]
    level = (values[:, 1:] == values[:, :-1]) & (indices[:, 1:] > indices[:, :-1])
    return bool((falls | level).all())


@DTYPES
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_is_the_reference_in_float64(backend, shape, normalize, dtype):
    q, n, d, k = shape
    queries, bank = rows(q, d, dtype), rows(n, d, dtype, seed=1)
    with fastssl.use_backend(backend):
        values, indices = similarity_topk(queries, bank, k, normalize=normalize)
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert values.shape == indices.shape == (q, k)
    assert sorted_pairs(values, indices)
    wide = queries.double(), bank.double()
    right, _ = reference(*wide, k, normalize=normalize)
    everything, order = reference(*wide, n, normalize=normalize)
    similarity = torch.empty_like(everything).scatter_(1, order, everything)  # [Q, K]
    lengths = [1.0, 1.0] if normalize else [t.norm(dim=1).max().item() for t in wide]
    bound = 2 * UNIT * lengths[0] * lengths[1]
    assert (values - right).abs().max() <= bound
    assert (values - similarity.gather(1, indices)).abs().max() <= bound


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_ties_go_to_the_smaller_index(backend, shape, dtype):
    q, n, d, k = shape
    queries, bank = small_integers(q, d, dtype), small_integers(n, d, dtype, seed=1)
    with fastssl.use_backend(backend):
        values, indices = similarity_topk(queries, bank, k)
    # Independent of any order of ours: the key of an entry is unique.
    products = (queries.double() @ bank.double().T).long() * n - torch.arange(n)
    keys, expected = products.topk(k)
    assert torch.equal(indices, expected)
    assert torch.equal(values.long() * n - indices, keys)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("copies", [2, 60, 401])
def test_duplicates_are_equal_wherever_they_stand(copies, normalize):
    queries, bank = rows(21, 37), rows(30, 37, seed=1)
    values, indices = similarity_topk(queries, bank.repeat(copies, 1), copies, normalize=normalize)
    best_values, best = similarity_topk(queries, bank, 1, normalize=normalize)
    assert torch.equal(values, best_values.expand_as(values))
    assert torch.equal(indices, best + 30 * torch.arange(copies))


@pytest.mark.parametrize(("q", "k"), [(3, 5), (130, 20), (1100, 3)])
def test_bitwise_the_same_at_any_number_of_threads(q, k):
    queries, bank = rows(q, 20), rows(20011, 20, seed=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(raw(queries, bank, k, True))
    finally:
        torch.set_num_threads(before)
    for values, indices in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(indices, results[0][1])


@pytest.mark.parametrize("direction", [1, -1])
def test_sorted_banks(direction):
    """Every entry better than all before it, or none."""
    bank = torch.arange(10007.0)[:, None] * direction
    values, indices = similarity_topk(torch.ones(2, 1), bank, 300)
    expected = torch.arange(300) if direction < 0 else torch.arange(10006, 9706, -1)
    assert torch.equal(indices, expected.expand(2, 300))
    assert torch.equal(values, bank[indices, 0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_very_long_and_very_short_rows_only_have_a_direction(backend):
    queries, bank = rows(5, 9), rows(40, 9, seed=1)
    bank[7] = 0
    right, order = reference(queries.double(), bank.double(), 40, normalize=True)
    lengths = 10.0 ** torch.linspace(-11, 25, 40)[:, None]
    with fastssl.use_backend(backend):
        values, indices = similarity_topk(queries * 1e-9, bank * lengths, 40, normalize=True)
        assert (values - right).abs().max() <= 2 * UNIT
        assert torch.equal(indices, order)
        nothing, first = similarity_topk(queries * 0, bank, 3, normalize=True)
    assert not nothing.any()
    assert torch.equal(first, torch.arange(3).expand(5, 3))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_counts_as_the_largest(backend, normalize):
    queries, bank = rows(6, 8), rows(200, 8, seed=1)
    bank[150, 3] = NAN
    bank[60, 2] = INF if normalize else NAN  # ∞ / ∞
    queries[2, 7] = NAN
    with fastssl.use_backend(backend):
        values, indices = similarity_topk(queries, bank, 4, normalize=normalize)
        clean = torch.cat([bank[:60], bank[61:150], bank[151:]])
        best, where = similarity_topk(queries, clean, 2, normalize=normalize)
    assert values[2].isnan().all()
    assert torch.equal(indices[2], torch.arange(4))
    others = [0, 1, 3, 4, 5]
    assert values[others, :2].isnan().all()
    assert torch.equal(indices[others, :2], torch.tensor([60, 150]).expand(5, 2))
    torch.testing.assert_close(values[others, 2:], best[others])
    where = where + (where >= 60).long() + (where >= 149).long()
    assert torch.equal(indices[others, 2:], where[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_a_bank_of_nothing_but_nan(backend):
    bank = torch.tensor([[1.0], [-INF], [INF], [0.0], [-0.0], [-INF]])
    with fastssl.use_backend(backend):
        values, indices = similarity_topk(torch.ones(1, 1), bank, 6)
        assert values.tolist() == [[INF, 1, 0, 0, -INF, -INF]]
        assert indices.tolist() == [[2, 0, 3, 4, 1, 5]]
        values, indices = similarity_topk(torch.ones(3, 2), torch.full((500, 2), NAN), 40)
        assert values.isnan().all()
        assert torch.equal(indices, torch.arange(40).expand(3, 40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_a_narrow_dtype(dtype):
    """Conversion is the kernel's own: subnormal, infinite, NaN."""
    bank = torch.arange(2**16).to(torch.int16).view(dtype)[:, None]
    values, indices = similarity_topk(torch.ones(1, 1, dtype=dtype), bank, 2**16)
    right, order = reference(torch.ones(1, 1, dtype=dtype), bank, 2**16)
    assert torch.equal(indices, order)
    assert torch.equal(values.nan_to_num(-1.0), right.nan_to_num(-1.0))


def test_strides_do_not_matter():
    queries, bank = rows(12, 10), rows(50, 10, seed=1)
    plain = similarity_topk(queries, bank, 7)
    strided = similarity_topk(queries.T.contiguous().T, torch.cat([bank, bank], 1)[:, :10], 7)
    for a, b in zip(plain, strided, strict=True):
        assert torch.equal(a, b)


def test_float64_stays_float64():
    queries, bank = rows(4, 6).double(), rows(30, 6, seed=1).double()
    bank[3] = bank[8] * (1 + 2**-40)
    values, indices = similarity_topk(queries, bank, 30)
    assert values.dtype == torch.float64
    expected, order = (queries @ bank.T).topk(30)
    torch.testing.assert_close(values, expected)
    assert torch.equal(indices, order)


def test_the_fallback_takes_blocks_of_queries(monkeypatch):
    queries, bank = rows(23, 6), rows(40, 6, seed=1)
    whole = _reference_fwd(queries, bank, 4, True)
    monkeypatch.setattr(sys.modules[_reference_fwd.__module__], "BLOCK", 100)
    for a, b in zip(whole, _reference_fwd(queries, bank, 4, True), strict=True):
        assert torch.equal(a, b)


def test_no_gradient():
    queries, bank = rows(4, 6).requires_grad_(), rows(9, 6, seed=1).requires_grad_()
    for backend in BACKENDS:
        with fastssl.use_backend(backend):
            values, indices = similarity_topk(queries, bank, 2)
            assert not values.requires_grad
            assert not indices.requires_grad


def test_autocast_does_not_lower_it():
    queries, bank = rows(4, 6), rows(90, 6, seed=1)
    for backend in BACKENDS:
        with fastssl.use_backend(backend):
            plain = similarity_topk(queries, bank, 5)
            with torch.autocast("cpu", torch.bfloat16):
                for a, b in zip(plain, similarity_topk(queries, bank, 5), strict=True):
                    assert torch.equal(a, b)


@pytest.mark.parametrize("normalize", [False, True])
def test_opcheck(normalize):
    torch.library.opcheck(raw, (rows(5, 7), rows(30, 7, seed=1), 4, normalize))


def test_compile_fullgraph():
    compiled = torch.compile(similarity_topk, fullgraph=True, dynamic=True, backend="aot_eager")
    for q, n, k in ((8, 50, 3), (5, 40, 7)):
        queries, bank = rows(q, 6), rows(n, 6, seed=1)
        for backend in BACKENDS:
            with fastssl.use_backend(backend):
                eager, traced = similarity_topk(queries, bank, k), compiled(queries, bank, k)
            assert torch.equal(eager[1], traced[1])
            torch.testing.assert_close(eager[0], traced[0])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(queries=torch.ones(3, 4, dtype=torch.int32)), TypeError, "queries must be a float32"),
        (dict(queries=[[1.0]]), TypeError, "not list"),
        (dict(bank=torch.ones(3)), ValueError, r"bank must have shape \[rows, features\]"),
        (dict(queries=torch.ones(0, 4)), ValueError, r"queries must have shape"),
        (dict(bank=torch.ones(0, 4)), ValueError, r"bank must have shape"),
        (dict(queries=torch.ones(3, 0)), ValueError, r"queries must have shape"),
        (dict(bank=torch.ones(9, 5)), ValueError, "width of queries, 4, not 5"),
        (dict(bank=torch.ones(9, 4).half()), TypeError, "dtype of queries"),
        (dict(bank=torch.ones(9, 4, device="meta")), ValueError, "device of queries"),
        (dict(bank=torch.ones(1, 4).expand(2**31, 4)), ValueError, "fewer than 2\\^31 rows"),
        (dict(k=0), ValueError, r"k must lie in \[1, 9\], the rows of bank, not 0"),
        (dict(k=10), ValueError, "not 10"),
        (dict(k=2.0), TypeError, "k must be an int, not float"),
        (dict(k=True), TypeError, "not bool"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        similarity_topk(**(dict(queries=torch.randn(3, 4), bank=torch.randn(9, 4), k=2) | change))
