"""sinkhorn: the reference's plan and potentials, whoever computes them, however wide the logits."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.ops import sinkhorn, sinkhorn_columns, sinkhorn_potentials
from fastssl.ops.sinkhorn import _reference_fwd
from fastssl.reference import sinkhorn as reference
from tests.cases import WITH_ISAS

raw = torch.ops.fastssl.sinkhorn_fwd
whole = torch.ops.fastssl.sinkhorn_plan_fwd
BACKENDS = ["native", "reference"]  # Triton: tests/kernels
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
# (B, K): one of everything, sizes around vectors and blocks of rows.
SHAPES = [(1, 1), (1, 37), (41, 1), (5, 16), (65, 257), (130, 31), (300, 1100)]
INF, NAN = float("inf"), float("nan")


def scores(b, k, size=1.0, dtype=torch.float32, seed=0):
    """Uniform in ±size."""
    generator = torch.Generator().manual_seed(1000 * b + k + seed)
    return (size * (2 * torch.rand(b, k, generator=generator, dtype=torch.float64) - 1)).to(dtype)


def variation(plan, right):
    """The largest total variation between rows; NaN and infinity never pass."""
    assert plan.shape == right.shape
    assert torch.isfinite(plan).all()
    return (plan.double() - right).abs().sum(1).max().item() / 2


def check(x, epsilon=0.05, iterations=3, backend="native", most=1e-5):
    right, *_ = reference(x.double(), epsilon, iterations)
    with fastssl.use_backend(backend):
        plan = sinkhorn(x, epsilon, iterations)
        u, v = sinkhorn_potentials(x, epsilon, iterations)
        assert torch.equal(v, sinkhorn_columns(x, epsilon, iterations))
    assert plan.dtype == torch.float32
    assert variation(plan, right) <= most
    assert variation(torch.exp(x.double() / epsilon - u[:, None] - v), right) <= most


@DTYPES
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_is_the_reference_in_float64(backend, shape, iterations, dtype):
    check(scores(*shape, dtype=dtype), 0.05, iterations, backend)


@pytest.mark.parametrize("size", [50, 500, 5e4, 5e6])
@pytest.mark.parametrize("shape", [(3, 5), (65, 257), (1, 37)], ids=str)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_wide_logits(backend, shape, size):
    """Up to ±1e8: float32 would know such logits to ±4."""
    for iterations in (1, 3, 10):
        check(scores(*shape, size), 0.05, iterations, backend)


@pytest.mark.parametrize("widest", [30.9, 31.1])
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_on_either_side_of_where_powers_are_kept(backend, widest):
    """Powers of two up to 2^31 are iterated on as they are, wider ones by their logarithms."""
    x = scores(70, 201)
    x[3, 5], x[4, 200] = 1, -1
    for iterations in (1, 2, 7):
        check(x, 1.4426950408889634 / widest, iterations, backend, most=1e-6)


@pytest.mark.parametrize("backend", WITH_ISAS)
def test_factors_far_apart(backend):
    """Powers within ±31 whose factors drift to 2^56 from each other."""
    x = torch.full((40, 40), -1.0)
    x[torch.arange(40)[:, None] >= torch.arange(40)] = 1.0  # a staircase
    check(x, 0.05, 400, backend)


def test_many_prototypes_and_many_samples():
    check(scores(2, 131_072), 0.05, 3, most=2e-6)
    check(scores(5000, 3), 0.05, 3, most=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_and_columns_out_of_reach(backend):
    """Sums that underflow next to ones that do not: both kinds in a row, a column, a vector."""
    x = scores(70, 600)
    x[::7] -= 1000
    x[:, 5::11] -= 300
    x[3, 5:9] += 2000
    check(x, 0.05, 3, backend, most=2e-6)
    check(x, 1.4426950408889634, 3, backend, most=2e-6)  # a factor of exactly one


@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_pairs(backend):
    x = scores(40, 70)
    forbidden = torch.rand(40, 70) < 0.3
    forbidden[:, 7] = True  # nobody may
    forbidden[0], forbidden[0, 3] = True, False  # a sample of one choice
    x[forbidden] = -INF
    check(x, backend=backend)
    with fastssl.use_backend(backend):
        plan = sinkhorn(x)
        assert not plan[forbidden].any()
        assert abs(plan[0, 3] - 1) <= 2**-23  # a number times its reciprocal
        assert sinkhorn_columns(x)[7] == 0


@pytest.mark.parametrize("value", [NAN, INF, "row"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_has_no_plan_is_nan(backend, value):
    x = scores(40, 70)
    if value == "row":
        x[20] = -INF
    else:
        x[20, 33] = value
    with fastssl.use_backend(backend):
        assert sinkhorn(x).isnan().all()
        assert all(t.isnan().all() for t in sinkhorn_potentials(x))


@pytest.mark.parametrize("size", [1, 500])
def test_bitwise_the_same_at_any_number_of_threads(size):
    x = scores(700, 1300, size)
    before, plans = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            plans.append(sinkhorn(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(plans[0], plans[1])
    assert torch.equal(plans[0], plans[2])


def test_a_plan_past_the_caches_is_written_in_every_place():
    x = scores(2800, 3001)
    plan = sinkhorn(x, 0.05, 1)
    some = sinkhorn_columns(x, 0.05, 1)
    torch.testing.assert_close(plan, torch.softmax(x.double() / 0.05 - some, 1).float())


def test_strides_float64_autocast_and_no_gradient():
    x = scores(20, 30)
    plain = sinkhorn(x)
    assert torch.equal(plain, sinkhorn(x.T.contiguous().T.requires_grad_()))
    assert not sinkhorn(x.requires_grad_()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, sinkhorn(x))
    wide = sinkhorn(x.detach().double())
    assert wide.dtype == torch.float64
    assert variation(wide, reference(x.detach().double())[0]) <= 1e-14


def test_opcheck():
    x = scores(9, 20)
    columns = x.double().logsumexp(0) * 20
    for arguments in (
        (None, None, True, False),
        (None, columns, True, True),
        (None, None, True, False, True),
        (torch.zeros(9, dtype=torch.float64), columns, False, False),
    ):
        torch.library.opcheck(raw, (x, 0.05, *arguments))
    torch.library.opcheck(whole, (x, 0.05, 3))
    torch.library.opcheck(whole, (20 * x, 0.05, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_sum_exps_become_potentials_if_so_wanted(backend):
    """Other ranks may have scores where these have none, so their part stays as it is."""
    x = scores(9, 20)
    x[:, 4] = -INF
    step = raw if backend == "native" else _reference_fwd
    rows = torch.zeros(9, dtype=torch.float64)
    for before in ((None, None), (rows, torch.zeros(20, dtype=torch.float64))):
        part = step(x, 0.05, *before, True, False)[1]
        whole = step(x, 0.05, *before, True, False, True)[1]
        assert part[4] == -INF
        assert whole[4] == 0
        assert torch.equal(part[5:], whole[5:])


def test_compile_fullgraph():
    compiled = torch.compile(sinkhorn, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((8, 50), (5, 40)):
        for backend in BACKENDS:
            with fastssl.use_backend(backend):
                torch.testing.assert_close(compiled(scores(*shape)), sinkhorn(scores(*shape)))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(scores=torch.ones(3, 4, dtype=torch.int32)), TypeError, "scores must be a float32"),
        (dict(scores=torch.ones(3)), ValueError, r"scores must have shape \[rows, features\]"),
        (dict(scores=torch.ones(0, 4)), ValueError, "scores must have shape"),
        (dict(scores=torch.ones(3, 0)), ValueError, "scores must have shape"),
        (dict(epsilon="0.05"), TypeError, "epsilon must be a float, not str"),
        (dict(epsilon=0.0), ValueError, "epsilon must be positive"),
        (dict(epsilon=NAN), ValueError, "epsilon must be positive"),
        (dict(iterations=0), ValueError, "iterations must be at least 1, not 0"),
        (dict(iterations=2.0), TypeError, "iterations must be an int, not float"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    for function in (sinkhorn, sinkhorn_potentials, sinkhorn_columns):
        with pytest.raises(error, match=says):
            function(**(dict(scores=torch.randn(3, 4)) | change))
