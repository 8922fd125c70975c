"""SupCon: positives by class sums."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import nt_xent, sup_con
from tests.cases import KINDS, SHAPES, TEMPERATURES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck, peer, unit
from tests.numerics import LOSS


def loss_of(labels=None, **options):
    return lambda x, t: sup_con(x, labels, t, reduction="none", **options)


def plain(dot, x, t, labels=None, one=False):
    """Rows as the paper has them, [N, V] or [N]."""
    n, v = x.shape[0], x.shape[1] if x.dim() == 3 else 1
    rows = x.reshape(n * v, -1)
    labels = (torch.arange(n) if labels is None else labels).repeat_interleave(v)
    itself = torch.eye(n * v, dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself
    lse = (dot(rows, rows) / t).masked_fill(itself, float("-inf")).logsumexp(1, keepdim=True)
    # Zero where there is no positive, instead of the −inf of a single row.
    loss = torch.where(positives, lse - dot(rows, rows) / t, 0.0).sum(1) / positives.sum(1).clamp(
        min=1
    )
    loss = loss.view(x.shape[:-1])
    return loss[:, 0] if one else loss


def hobbit_long(features, labels=None, temperature=0.07, base_temperature=0.07, mode="all"):
    """The authors' SupConLoss by its documented formula, with its mask and its shifted logits."""
    n, v = features.shape[:2]
    labels = torch.arange(n) if labels is None else labels
    contrast = torch.cat(features.unbind(1))
    anchors = contrast if mode == "all" else features[:, 0]
    logits = anchors @ contrast.T / temperature
    logits = logits - logits.max(1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(contrast), dtype=logits.dtype)[: len(anchors)]
    mask = (labels[:, None] == labels).to(logits.dtype).repeat(len(anchors) // n, v) * others
    log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    mean_log_prob = (mask * log_prob).sum(1) / mask.sum(1)
    return -(temperature / base_temperature) * mean_log_prob.mean()


def stacked(kind, n, d, v, dtype=torch.float32):
    """Normalised features, [N, V, D]."""
    return unit(torch.stack([*views(kind, n, d), *views(kind, n, d, seed=1)][:v], 1)).to(dtype)


LABELS = {
    "none": lambda n: None,
    "pairs": lambda n: torch.arange(n) // 2,
    "few": lambda n: torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(0)) - 1,
    "one": lambda n: torch.full((n,), 7),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for i, (n, d) in enumerate(s for s in SHAPES if s[0] < 90):
        t = (0.01, 0.07, 1.0)[i % 3]
        for j, make in enumerate(LABELS.values()):  # none first, which needs two views
            v = 1 + (i + j) % 3 if j else 2 + i % 2
            x, labels = stacked(kind, n, d, v, dtype), make(n)
            compare(
                loss_of(labels), functools.partial(plain, labels=labels), (x,), t,
                normalize=False, difference=True,
            )  # fmt: skip


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, t):
    options = dict(backend=backend, difference=True)
    for dtype in (torch.float32, torch.float16):
        x = 3 * stacked("related", 40, 16, 2, dtype)
        labels = LABELS["few"](40)
        for one in (False, True):
            mode = dict(contrast_mode="one" if one else "all")
            formula = functools.partial(plain, labels=labels, one=one)
            compare(loss_of(labels, normalize=True, **mode), formula, (x,), t, **options)
        single = x[:, 0] / 3
        formula = functools.partial(plain, labels=labels)
        compare(loss_of(labels), formula, (single,), t, normalize=False, **options)


@pytest.mark.parametrize("t", [0.01, 0.05, 0.5])
def test_two_views_keep_the_digits_of_nt_xent(t):
    """A positive that dominates leaves a loss far below the rounding of its logits."""
    x = stacked("related", 60, 64, 2)
    compare(loss_of(), plain_nt_xent, (x,), t, normalize=False)
    alone = torch.arange(60).flip(0)
    compare(loss_of(alone), plain_nt_xent, (x,), t, normalize=False)
    expected = nt_xent(*x.unbind(1), t, normalize=False)
    torch.testing.assert_close(sup_con(x, temperature=t), expected, rtol=LOSS, atol=0)


def plain_nt_xent(dot, x, t):
    n = len(x)
    z = x.transpose(0, 1).flatten(0, 1)
    logits = dot(z, z) / t
    pair = torch.arange(2 * n).roll(n)
    apart = torch.eye(2 * n, dtype=torch.bool)
    negatives = logits.masked_fill(apart | apart[pair], float("-inf")).logsumexp(1)
    positive = logits[torch.arange(2 * n), pair]
    return torch.logaddexp(0 * positive, negatives - positive).view(2, n).T


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_positive_do_not_count(backend):
    x = stacked("independent", 7, 5, 1)[:, 0].requires_grad_()
    labels = torch.tensor([4, 1, 4, 9, 1, 4, -3])
    counted = labels != 9
    counted &= labels != -3
    with fastssl.use_backend(backend):
        rows = sup_con(x, labels, reduction="none")
        assert not rows[~counted].any()
        torch.testing.assert_close(sup_con(x, labels), rows[counted].mean())
        loss = sup_con(x, torch.arange(7))
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()
        loss = sup_con(x[:1], labels[:1])
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_collapse_gives_log_of_the_others(backend):
    x = F.normalize(torch.randn(1, 1, 9), dim=2).repeat(10, 2, 1).requires_grad_()
    with fastssl.use_backend(backend):
        for labels in (None, LABELS["few"](10), LABELS["one"](10)):
            loss = sup_con(x, labels)
            assert abs(loss.item() - math.log(19)) < LOSS * 3 * 14
            assert torch.autograd.grad(loss, x)[0].norm() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_sample(backend):
    x = stacked("related", 1, 6, 2).requires_grad_()
    with fastssl.use_backend(backend):
        loss = sup_con(x)
        assert loss == 0
        assert not torch.autograd.grad(loss, x)[0].any()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_zero_rows(backend, normalize):
    labels = LABELS["few"](8)
    with fastssl.use_backend(backend):
        for v in (1, 2, 3):
            x = stacked("related", 8, 6, v)
            x[3, 0] = 0
            x.requires_grad_()
            (d_x,) = torch.autograd.grad(sup_con(x, labels, normalize=normalize), x)
            assert torch.isfinite(d_x).all()
            assert not normalize or not d_x[3, 0].any()
            broken = x.detach().clone()
            broken[5, 0, 2] = float("nan")
            assert sup_con(broken, labels, normalize=normalize).isnan()


def test_gradcheck():
    x = stacked("independent", 4, 3, 3)
    labels = torch.tensor([0, 1, 0, 2])
    for v in (1, 2, 3):
        for options in ({}, dict(normalize=True), dict(contrast_mode="one", base_temperature=0.5)):
            gradcheck(loss_of(labels, **options), x[:, :v])
    gradcheck(loss_of(), x)


def test_compiles_to_one_graph():
    x = stacked("related", 6, 5, 2)
    compiles(loss_of(torch.arange(6) % 2), x)
    compiles(loss_of(torch.arange(6) % 2, contrast_mode="one", normalize=True), x)
    compiles(loss_of(torch.arange(6) % 2), x[:, 0])


@pytest.mark.parametrize("mode", ["all", "one"])
def test_is_its_authors(mode):
    x = stacked("related", 11, 7, 3)
    labels = torch.randint(0, 4, (11,))
    for v in (2, 3):
        for y in (None, labels):
            for t in (0.07, 0.5):
                agree(
                    lambda x, t=t, y=y: sup_con(x, y, t, 0.07, contrast_mode=mode),
                    lambda x, t=t, y=y: hobbit_long(x, y, t, mode=mode),
                    x[:, :v],
                )


def test_is_pytorch_metric_learnings():
    theirs = peer("pytorch_metric_learning.losses", "pytorch-metric-learning").SupConLoss
    x = 3 * stacked("related", 12, 7, 1)[:, 0]
    labels = torch.arange(12) % 4
    for t in (0.1, 0.5):
        agree(
            lambda x, t=t: sup_con(x, labels, t, normalize=True),
            lambda x, t=t: theirs(temperature=t)(x, labels),
            x,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_and_dtypes(backend):
    x, labels = stacked("related", 9, 5, 3), torch.arange(9) % 2
    with fastssl.use_backend(backend):
        for mode, shape in (("all", (9, 3)), ("one", (9,))):
            call = functools.partial(sup_con, labels=labels, contrast_mode=mode)
            rows = call(x, reduction="none")
            assert rows.shape == shape
            torch.testing.assert_close(call(x, reduction="sum"), rows.sum())
            torch.testing.assert_close(call(x), rows.mean())
            torch.testing.assert_close(call(x, base_temperature=0.14), rows.mean() / 2)
            for dtype, gives in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
                assert call(x.to(dtype)).dtype == gives
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(call(x, reduction="none"), rows)
        assert sup_con(x[:, :1], labels, reduction="none").shape == (9, 1)
        assert sup_con(x[:, 0], labels, reduction="none").shape == (9,)
        torch.testing.assert_close(
            sup_con(x, labels.to(torch.uint8)), sup_con(x, labels == 1), rtol=0, atol=0
        )


def test_module():
    x, labels = stacked("related", 9, 5, 2), torch.arange(9) % 2
    assert torch.equal(fastssl.SupConLoss()(x, labels), sup_con(x, labels, 0.07))
    module = fastssl.SupConLoss(0.1, "one", 0.07)
    assert torch.equal(module(x), sup_con(x, None, 0.1, 0.07, contrast_mode="one"))
    assert "contrast_mode='one'" in repr(module)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(features=torch.ones(4)), ValueError, r"features must have shape \[N, D\] or"),
        (dict(features=torch.ones(4, 5).int()), TypeError, "features must be a floating-point"),
        (dict(features=torch.ones(0, 5)), ValueError, "at least one row and feature"),
        (dict(labels=None), ValueError, "labels are needed for a single view"),
        (dict(labels=None, features=torch.ones(4, 1, 5)), ValueError, "labels are needed"),
        (dict(labels=torch.ones(4)), TypeError, "labels must be a tensor of integers, not torch"),
        (dict(labels=[1, 2, 1, 2]), TypeError, "not list"),
        (dict(labels=torch.ones(3).int()), ValueError, r"labels must have shape \[4\], not \[3\]"),
        (dict(labels=torch.ones(4, device="meta").int()), ValueError, "labels must be on"),
        (dict(temperature=0.0), ValueError, "temperature must be positive"),
        (dict(base_temperature=-1.0), ValueError, "base_temperature must be positive"),
        (dict(contrast_mode="some"), ValueError, "'some'"),
        (dict(reduction="max"), ValueError, "'max'"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    good = dict(features=torch.randn(4, 5), labels=torch.tensor([0, 1, 0, 1]))
    with pytest.raises(error, match=says):
        sup_con(**(good | change))
