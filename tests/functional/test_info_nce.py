"""InfoNCE with negatives from the batch, a queue, or a set for each query."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import fastssl
from fastssl.functional import info_nce
from tests.cases import KINDS, SHAPES, TEMPERATURES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck, peer
from tests.numerics import LOSS

rows_of = functools.partial(info_nce, reduction="none")


def in_batch(q, k, t):
    return rows_of(q, k, None, t)


def both_ways(q, k, t):
    return rows_of(q, k, None, t, symmetric=True)


def softplus_rows(negatives, positive):
    """[N, K] and [N]."""
    return torch.logaddexp(torch.zeros_like(positive), negatives.logsumexp(1) - positive)


def plain_in_batch(dot, q, k, t):
    logits = dot(q, k) / t
    negatives = logits.masked_fill(torch.eye(len(q), dtype=torch.bool), float("-inf"))
    return softplus_rows(negatives, logits.diagonal())


def plain_both_ways(dot, q, k, t):
    logits = dot(q, k) / t
    negatives = logits.masked_fill(torch.eye(len(q), dtype=torch.bool), float("-inf"))
    forth, back = (softplus_rows(side, logits.diagonal()) for side in (negatives, negatives.T))
    return (forth + back) / 2


def plain_shared(dot, q, k, keys, t):
    return softplus_rows(dot(q, keys) / t, dot(q[:, None], k[:, None])[:, 0, 0] / t)


def plain_paired(dot, q, k, keys, t):
    positive = dot(q[:, None], k[:, None])[:, 0, 0] / t
    return softplus_rows(dot(q[:, None], keys)[:, 0] / t, positive)


def keys(kind, n, d):
    """Shared keys, as many as there are queries and a few more."""
    return torch.cat(views(kind, n + 3, d, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for i, (n, d) in enumerate(SHAPES):
        q, k = (z.to(dtype) for z in views(kind, n, d))
        queue = keys(kind, n, d).to(dtype)
        t = (0.01, 0.07, 1.0)[i % 3]
        compare(rows_of, plain_shared, (q, k, queue), t)
        if n > 1:
            compare(in_batch, plain_in_batch, (q, k), t)
            compare(both_ways, plain_both_ways, (q, k), t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_keys_for_each_query(kind, dtype):
    for n, d, count, t in ((1, 8, 1, 0.1), (7, 5, 3, 1.0), (24, 16, 11, 0.01), (61, 127, 5, 0.1)):
        q, k = (z.to(dtype) for z in views(kind, n, d))
        own = keys(kind, n * count, d)[: n * count].view(n, count, d).to(dtype)
        compare(rows_of, plain_paired, (q, k, own), t)


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, t):
    q, k = views("related", 61, 33)
    queue = keys("independent", 61, 33)
    own = queue[:122].view(61, 2, 33)
    for dtype in (torch.float32, torch.float16):
        q, k, queue, own = (z.to(dtype) for z in (q, k, queue, own))
        compare(in_batch, plain_in_batch, (q, k), t, backend)
        compare(both_ways, plain_both_ways, (q, k), t, backend)
        compare(rows_of, plain_shared, (q, k, queue), t, backend)
        compare(rows_of, plain_paired, (q, k, own), t, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_products(backend):
    q, k = views("related", 30, 12)
    queue = keys("independent", 30, 12)
    options = dict(backend=backend, normalize=False)
    dots = functools.partial(rows_of, normalize=False)
    compare(dots, plain_shared, (q, k, queue), 1.0, **options)
    compare(dots, plain_paired, (q, k, queue[:60].view(30, 2, 12)), 1.0, **options)
    compare(lambda q, k, t: dots(q, k, None, t), plain_in_batch, (q, k), 1.0, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_queue_without_gradient(backend):
    """The rows' gradients are those of the other way, from one pass."""
    q, k = views("related", 40, 16)
    queue = keys("independent", 40, 16)
    results = []
    for learns in (True, False):
        leaves = [z.clone().requires_grad_(need) for z, need in ((q, True), (k, learns))]
        t = torch.tensor(0.1, requires_grad=True)
        with fastssl.use_backend(backend):
            loss = info_nce(*leaves, queue.clone().requires_grad_(learns), t)
        results.append((loss, *torch.autograd.grad(loss, (leaves[0], t))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alone_in_the_batch(backend):
    q, k = (z.requires_grad_() for z in torch.randn(2, 1, 6).unbind())
    with fastssl.use_backend(backend):
        for symmetric in (False, True):
            loss = info_nce(q, k, symmetric=symmetric)
            assert loss == 0
            assert not any(d.any() for d in torch.autograd.grad(loss, (q, k)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_collapse_gives_log_of_the_choices(backend):
    row = torch.randn(1, 9).repeat(20, 1)
    with fastssl.use_backend(backend):
        for negatives, choices in ((None, 20), (row, 21), (row[:, None].repeat(1, 4, 1), 5)):
            loss = info_nce(row, row.clone(), negatives)
            assert abs(loss.item() - math.log(choices)) < LOSS * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_visible(backend):
    for bad in (float("nan"), float("inf")):
        for place in range(3):
            tensors = [torch.randn(5, 4), torch.randn(5, 4), torch.randn(7, 4)]
            tensors[place][2, 1] = bad
            with fastssl.use_backend(backend):
                assert info_nce(*tensors).isnan()
                if place < 2:
                    assert info_nce(*tensors[:2]).isnan()
                    assert info_nce(*tensors[:2], symmetric=True).isnan()
                    own = torch.randn(5, 2, 4)
                    assert info_nce(*tensors[:2], own).isnan()


def test_zero_rows_receive_nothing():
    q, k, queue = torch.randn(6, 5), torch.randn(6, 5), torch.randn(6, 5)
    q[1], k[2], queue[3] = 0, 0, 0
    own = queue[:, None].clone()
    for negatives in (None, queue, own):
        leaves = [
            z.clone().requires_grad_() for z in (q, k, *([] if negatives is None else [negatives]))
        ]
        gradients = torch.autograd.grad(info_nce(*leaves), leaves)
        assert all(torch.isfinite(d).all() for d in gradients)
        assert not gradients[0][1].any()
        assert not gradients[1][2].any()
        assert negatives is None or not gradients[2][3].any()


def test_gradcheck():
    q, k = views("independent", 4, 3)
    queue = keys("independent", 2, 3)
    gradcheck(in_batch, q, k)
    gradcheck(both_ways, q, k)
    gradcheck(rows_of, q, k, queue)
    gradcheck(rows_of, q, k, queue[:8].view(4, 2, 3))


def test_compiles_to_one_graph():
    q, k = views("related", 6, 5)
    queue = keys("independent", 6, 5)
    compiles(in_batch, q, k)
    compiles(both_ways, q, k)
    compiles(rows_of, q, k, queue)
    compiles(rows_of, q, k, queue[:12].view(6, 2, 5))


def test_is_info_nce_pytorch():
    theirs = peer("info_nce", "info-nce-pytorch").info_nce
    q, k = views("related", 11, 7)
    queue = keys("independent", 11, 7)
    for t in (0.05, 0.5):
        at = functools.partial(info_nce, temperature=t)
        other = functools.partial(theirs, temperature=t)
        agree(at, other, q, k)
        agree(at, other, q, k, queue)
        agree(at, functools.partial(other, negative_mode="paired"), q, k, queue[:22].view(11, 2, 7))
        swapped = functools.partial(at, symmetric=True)
        agree(swapped, lambda a, b, f=other: (f(a, b) + f(b, a)) / 2, q, k)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_and_dtypes(backend):
    q, k = views("related", 9, 5)
    with fastssl.use_backend(backend):
        for negatives in (None, keys("independent", 4, 5), torch.randn(9, 3, 5)):
            rows = info_nce(q, k, negatives, reduction="none")
            assert rows.shape == (9,)
            torch.testing.assert_close(info_nce(q, k, negatives, reduction="sum"), rows.sum())
            torch.testing.assert_close(info_nce(q, k, negatives), rows.mean())
            for dtype, gives in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
                wide = None if negatives is None else negatives.to(dtype)
                assert info_nce(q.to(dtype), k.to(dtype), wide).dtype == gives
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(info_nce(q, k, negatives, reduction="none"), rows)


def test_module():
    q, k = views("related", 9, 5)
    queue = keys("independent", 4, 5)
    assert torch.equal(fastssl.InfoNCELoss()(q, k, queue), info_nce(q, k, queue, 0.1))
    module = fastssl.InfoNCELoss(0.2, reduction="sum", symmetric=True)
    assert torch.equal(module(q, k), info_nce(q, k, None, 0.2, symmetric=True, reduction="sum"))
    assert "temperature=0.2" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(positive_key=torch.randn(3, 5)), ValueError, "query and positive_key must have one"),
        (dict(query=torch.ones(4, 5).long()), TypeError, "query must be a floating-point"),
        (dict(positive_key=torch.ones(4, 5).half()), TypeError, "one dtype"),
        (dict(query=torch.ones(0, 5), positive_key=torch.ones(0, 5)), ValueError, "at least one"),
        (dict(negative_keys=torch.ones(3)), ValueError, r"\[K, 5\] or \[4, K, 5\], not \[3\]"),
        (dict(negative_keys=torch.ones(3, 6)), ValueError, "negative_keys must have shape"),
        (dict(negative_keys=torch.ones(3, 2, 5)), ValueError, r"not \[3, 2, 5\]"),
        (dict(negative_keys=torch.ones(0, 5)), ValueError, "negative_keys must hold at least one"),
        (dict(negative_keys=torch.ones(4, 0, 5)), ValueError, "at least one key"),
        (dict(negative_keys=torch.ones(3, 5).double()), TypeError, "query and negative_keys"),
        (dict(negative_keys=[1]), TypeError, "negative_keys must be a floating-point"),
        (dict(negative_keys=torch.ones(3, 5, device="meta")), ValueError, "one device"),
        (dict(negative_keys=torch.ones(3, 5), symmetric=True), ValueError, "symmetric=True"),
        (dict(temperature=0), ValueError, "temperature must be positive"),
        (dict(reduction="average"), ValueError, "'average'"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        info_nce(**(dict(query=torch.randn(4, 5), positive_key=torch.randn(4, 5)) | change))
