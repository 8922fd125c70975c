"""NT-Xent over any number of views."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import fastssl
from fastssl.functional import multi_view_nt_xent, nt_xent
from tests.cases import KINDS, TEMPERATURES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck
from tests.numerics import LOSS

SHAPES = [(2, 3), (3, 1), (7, 5), (24, 16), (40, 127)]
INF = float("inf")


def loss_of(indexes=None, **options):
    return lambda z, t: multi_view_nt_xent(z, indexes, t, reduction="none", **options)


def plain(dot, z, t):
    """[N, V, D] to [N, V]."""
    n, v, _ = z.shape
    rows = z.flatten(0, 1)
    same = torch.arange(n).repeat_interleave(v)
    same = same[:, None] == same
    negatives = (dot(rows, rows) / t).masked_fill(same, -INF).logsumexp(1).view(n, v)
    itself = torch.eye(v, dtype=torch.bool)
    positives = (dot(z, z) / t).masked_fill(itself, -INF).logsumexp(2)
    return torch.logaddexp(0 * positives, negatives - positives)


def plain_indexed(dot, z, t, indexes):
    """[M, D] to [M], as a difference."""
    itself = torch.eye(len(z), dtype=torch.bool)
    positives = (indexes[:, None] == indexes) & ~itself
    every = (dot(z, z) / t).masked_fill(itself, -INF).logsumexp(1)
    logits = (dot(z, z) / t).masked_fill(~positives, -INF)
    has_positive = positives.any(1)
    lse = torch.where(has_positive[:, None], logits, 0.0).logsumexp(1)
    return torch.where(has_positive, every - lse, 0.0)


def solo_learn(z, indexes, temperature):
    """Its simclr_loss_func by the documented formula, with exponentials of everything."""
    z = torch.nn.functional.normalize(z, dim=1)
    e = (z @ z.T / temperature).exp()
    same = indexes[:, None] == indexes
    positives = (e * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(1)
    return -(positives / (positives + (e * ~same).sum(1))).log().mean()


def stacked(kind, n, d, v, dtype=torch.float32):
    several = [z for seed in range((v + 1) // 2) for z in views(kind, n, d, seed=seed)]
    return torch.stack(several[:v], dim=1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for i, (n, d) in enumerate(SHAPES):
        for v in (2, 3, 4, 5):
            t = (0.01, 0.07, 1.0)[(i + v) % 3]
            compare(loss_of(), plain, (stacked(kind, n, d, v, dtype),), t)


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, t):
    for dtype in (torch.float32, torch.float16):
        z = stacked("related", 30, 16, 3, dtype)
        compare(loss_of(), plain, (z,), t, backend)
        indexes = torch.arange(90) % 7
        compare(
            loss_of(indexes), functools.partial(plain_indexed, indexes=indexes),
            (z.flatten(0, 1),), t, backend, difference=True,
        )  # fmt: skip
    far = 2 * stacked("related", 20, 8, 4)
    compare(loss_of(normalize=False), plain, (far,), 1.0, backend, normalize=False)


INDEXES = {
    "twice": lambda m: torch.arange(m) // 2,
    "once or thrice": lambda m: torch.arange(m) % 5 * (torch.arange(m) < 15) + torch.arange(m),
    "classes": lambda m: torch.randint(-1, 2, (m,), generator=torch.Generator().manual_seed(0)),
    "one sample": lambda m: torch.zeros(m),
    "all alone": lambda m: torch.arange(m).flip(0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", INDEXES)
def test_any_indexes(name, dtype):
    for kind in ("independent", "duplicates", "with_zero", "cone"):
        for m, d, t in ((1, 3, 0.1), (6, 4, 0.01), (80, 12, 0.07), (81, 33, 1.0)):
            indexes = INDEXES[name](m).long()
            compare(
                loss_of(indexes), functools.partial(plain_indexed, indexes=indexes),
                (views(kind, m, d)[0].to(dtype),), t, difference=True,
            )  # fmt: skip


def test_two_views_are_nt_xent():
    z = stacked("related", 60, 64, 2)
    expected = nt_xent(*z.unbind(1), 0.05, reduction="none").view(2, 60).T
    for same in (z, z.unbind(1), list(z.unbind(1))):
        rows = multi_view_nt_xent(same, temperature=0.05, reduction="none")
        torch.testing.assert_close(rows, expected, rtol=5 * LOSS, atol=0)


def test_indexes_keep_the_digits_of_views():
    """Views in any order give the views' losses, tiny ones too."""
    z = stacked("related", 30, 64, 3)
    rows = multi_view_nt_xent(z, temperature=0.03, reduction="none").flatten()
    order = torch.randperm(90)
    indexes = torch.arange(30).repeat_interleave(3)[order] * 5 - 40
    shuffled = multi_view_nt_xent(z.flatten(0, 1)[order], indexes, 0.03, reduction="none")
    assert rows.min() < 1e-6
    torch.testing.assert_close(shuffled, rows[order], rtol=5 * LOSS, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_positive_do_not_count(backend):
    z = torch.randn(7, 5, requires_grad=True)
    indexes = torch.tensor([4, 1, 4, 9, 1, 4, -3])
    counted = torch.tensor([1, 1, 1, 0, 1, 1, 0]).bool()
    with fastssl.use_backend(backend):
        rows = multi_view_nt_xent(z, indexes, reduction="none")
        assert not rows[~counted].any()
        torch.testing.assert_close(multi_view_nt_xent(z, indexes), rows[counted].mean())
        loss = multi_view_nt_xent(z, torch.arange(7))
        assert loss == 0
        assert not torch.autograd.grad(loss, z)[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_sample_and_a_collapse(backend):
    with fastssl.use_backend(backend):
        for v in (2, 3, 20):
            z = torch.randn(1, v, 6, requires_grad=True)
            for loss in (
                multi_view_nt_xent(z),
                multi_view_nt_xent(z[0], torch.zeros(v).int()),
            ):
                assert loss == 0
                assert not torch.autograd.grad(loss, z)[0].any()
        z = torch.randn(1, 1, 9).repeat(10, 4, 1).requires_grad_()
        loss = multi_view_nt_xent(z)
        assert abs(loss.item() - math.log(39 / 3)) < 3 * LOSS
        assert torch.autograd.grad(loss, z)[0].norm() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_zero_rows(backend):
    z = stacked("related", 8, 6, 3)
    z[3, 0] = 0
    indexes = torch.arange(24) % 5
    with fastssl.use_backend(backend):
        for call in (multi_view_nt_xent, lambda z: multi_view_nt_xent(z.flatten(0, 1), indexes)):
            leaf = z.clone().requires_grad_()
            (d_z,) = torch.autograd.grad(call(leaf), leaf)
            assert torch.isfinite(d_z).all()
            assert not d_z[3, 0].any()
            for bad in (float("nan"), INF):
                broken = z.clone()
                broken[5, 2, 1] = bad
                assert call(broken).isnan()


def test_gradcheck():
    for v in (2, 3, 4):
        gradcheck(loss_of(), stacked("independent", 3, 3, v))
    gradcheck(loss_of(normalize=False), stacked("independent", 3, 3, 3))
    gradcheck(loss_of(torch.arange(9) % 4), torch.randn(9, 3))
    gradcheck(loss_of(torch.arange(19) // 18), torch.randn(19, 2))


def test_compiles_to_one_graph():
    for v in (2, 3):
        compiles(loss_of(), stacked("related", 6, 5, v))


def test_indexes_under_compile():
    z, indexes = torch.randn(10, 4), torch.arange(10) % 3
    traced = torch.compile(multi_view_nt_xent, backend="aot_eager")
    torch.testing.assert_close(traced(z, indexes), multi_view_nt_xent(z, indexes))


def test_is_solo_learns():
    z = torch.randn(60, 7)
    for indexes in (
        torch.arange(20).repeat(3),
        torch.arange(60) % 7,
        torch.arange(60) % 3,
        torch.arange(60) // 2,
    ):
        for t in (0.1, 0.5):
            agree(
                lambda z, i=indexes, t=t: multi_view_nt_xent(z, i, t),
                lambda z, i=indexes, t=t: solo_learn(z, i, t),
                z,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_and_dtypes(backend):
    z, indexes = torch.randn(8, 3, 5), torch.arange(24) % 7
    with fastssl.use_backend(backend):
        for args, shape in (((z,), (8, 3)), ((z.flatten(0, 1), indexes), (24,))):
            rows = multi_view_nt_xent(*args, reduction="none")
            assert rows.shape == shape
            torch.testing.assert_close(multi_view_nt_xent(*args, reduction="sum"), rows.sum())
            torch.testing.assert_close(multi_view_nt_xent(*args), rows.mean())
            for dtype, gives in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
                assert multi_view_nt_xent(args[0].to(dtype), *args[1:]).dtype == gives
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(multi_view_nt_xent(*args, reduction="none"), rows)


def test_module():
    z, indexes = torch.randn(8, 3, 5), torch.arange(24) % 7
    assert torch.equal(fastssl.MultiViewNTXentLoss()(z), multi_view_nt_xent(z, None, 0.1))
    module = fastssl.MultiViewNTXentLoss(0.3)
    rows = z.flatten(0, 1)
    assert torch.equal(module(rows, indexes), multi_view_nt_xent(rows, indexes, 0.3))
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(z=torch.ones(4, 5)), ValueError, r"z must have shape \[N, V, D\], or \[M, D\]"),
        (dict(z=torch.ones(4, 1, 5)), ValueError, "at least two views of each sample, not 1"),
        (dict(z=[]), ValueError, "at least two views"),
        (dict(z=[torch.ones(4, 5), torch.ones(3, 5)]), ValueError, r"z\[0\] and z\[1\] must have"),
        (dict(z=[torch.ones(4, 5), torch.ones(4, 5).half()]), TypeError, "one dtype"),
        (dict(z=torch.ones(4, 2, 5).int()), TypeError, r"z\[0\] must be a floating-point"),
        (dict(z=torch.ones(0, 2, 5)), ValueError, "at least one row"),
        (dict(z=[torch.ones(4, 5)] * 2, indexes=torch.arange(4)), TypeError, "not list"),
        (dict(z=torch.ones(4, 2, 5), indexes=torch.arange(4)), ValueError, r"shape \[M, D\]"),
        (dict(z=torch.ones(4, 5), indexes=torch.arange(3)), ValueError, r"indexes must have shape"),
        (dict(z=torch.ones(4, 5), indexes=torch.ones(4)), TypeError, "indexes must be a tensor of"),
        (dict(temperature=0.0), ValueError, "temperature must be positive"),
        (dict(reduction="max"), ValueError, "'max'"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        multi_view_nt_xent(**(dict(z=torch.randn(4, 2, 5)) | change))
