"""NNCLR: nearest neighbours in a queue as the positives of InfoNCE."""

from __future__ import annotations

import functools

import pytest
import torch

import fastssl
from fastssl.functional import nnclr
from tests.cases import SHAPES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck, unit

rows_of = functools.partial(nnclr, reduction="none")


def queue_of(d, dtype=torch.float32, k=83):
    return torch.randn(k, d, generator=torch.Generator().manual_seed(9)).to(dtype)


def neighbours(z, queue):
    """By the whole matrix, in float64."""
    return (unit(z.double()) @ unit(queue.double()).T).argmax(1)


def plain(nearest, dot, p, t):
    """Rows of the loss, given the neighbours."""
    logits = dot(nearest, p) / t
    others = logits.masked_fill(torch.eye(len(p), dtype=torch.bool), float("-inf")).logsumexp(1)
    return torch.logaddexp(torch.zeros_like(others), others - logits.diagonal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_formula(backend, dtype):
    for n, d in [shape for shape in SHAPES if shape[0] > 1]:
        p, z = (x.to(dtype) for x in views("independent", n, d))
        queue = queue_of(d, dtype)
        nearest = unit(queue[neighbours(z, queue)].double())
        for t in (0.05, 0.5):
            compare(
                lambda p, t, z=z, queue=queue: rows_of(p, z, queue, t),
                functools.partial(plain, nearest), (p,), t, backend,
            )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_dot_products(backend):
    p, z = views("related", 14, 6)
    queue = queue_of(6) * torch.linspace(0.1, 3, 83)[:, None]  # the longest are often nearest
    nearest = queue[(z.double() @ queue.double().T).argmax(1)]
    assert not torch.equal(nearest, queue[neighbours(z, queue)])
    right = plain(nearest.double(), lambda x, y: x @ y.T, p.double(), 0.5)
    with fastssl.use_backend(backend):
        rows = rows_of(p, z, queue, 0.5, normalize=False)
    torch.testing.assert_close(rows.double(), right, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_visible(backend):
    for argument in range(3):
        inputs = [*views("related", 14, 6), queue_of(6)]
        inputs[argument][3, 2] = float("nan")
        inputs[0].requires_grad_()
        with fastssl.use_backend(backend):
            loss = nnclr(*inputs)
            # A NaN projection only has another neighbour.
            assert loss.isnan() == (argument != 1)


def test_neither_projection_nor_queue_receives_a_gradient():
    p, z = (x.requires_grad_() for x in views("related", 12, 7))
    queue = queue_of(7).requires_grad_()
    nnclr(p, z, queue).backward()
    assert p.grad.norm() > 0
    assert z.grad is None
    assert queue.grad is None


def test_a_neighbour_is_taken_from_the_queue_as_it_was():
    """The queue may move on before the backward."""
    p, z = views("independent", 12, 7)
    p.requires_grad_()
    gradients = []
    for overwrite in (False, True):
        queue = queue_of(7)
        loss = nnclr(p, z, queue)
        if overwrite:
            queue.fill_(float("nan"))
        gradients.append(torch.autograd.grad(loss, p)[0])
    assert torch.equal(*gradients)


def test_one_sample_has_loss_zero():
    p, z = views("independent", 1, 5)
    assert nnclr(p, z, queue_of(5)) == 0


def test_module_and_reductions():
    p, z = views("related", 9, 6)
    queue, rows = queue_of(6), rows_of(p, z, queue_of(6), 0.2)
    torch.testing.assert_close(nnclr(p, z, queue, 0.2), rows.mean())
    torch.testing.assert_close(nnclr(p, z, queue, 0.2, reduction="sum"), rows.sum())
    torch.testing.assert_close(fastssl.NNCLRLoss(0.2)(p, z, queue), rows.mean())


def test_float64_and_gradcheck_and_compile():
    p, z = views("independent", 6, 4)
    queue = queue_of(4)
    gradcheck(lambda p, t: nnclr(p, z.double(), queue.double(), t), p)
    compiles(lambda p, t: nnclr(p, z, queue, t, reduction="none"), p)
    nearest = torch.nn.functional.normalize(queue[neighbours(z, queue)].double(), dim=1)
    agree(
        lambda p: nnclr(p, z.double(), queue.double(), 0.3),
        lambda p: plain(
            nearest, lambda x, y: x @ torch.nn.functional.normalize(y).T, p, 0.3
        ).mean(),
        p,
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(projection=torch.randn(3, 5)), ValueError, "one shape"),
        (
            dict(queue=torch.randn(8, 6)),
            ValueError,
            r"shape \[K, 5\], not \[8, 6\]",
        ),
        (dict(queue=torch.randn(0, 5)), ValueError, "queue must have shape"),
        (dict(queue=torch.randn(8, 5).half()), TypeError, "one dtype"),
        (dict(temperature=0.0), ValueError, "positive"),
        (dict(reduction="average"), ValueError, "'average'"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    arguments = dict(
        prediction=torch.randn(4, 5), projection=torch.randn(4, 5), queue=torch.randn(8, 5)
    )
    with pytest.raises(error, match=says):
        nnclr(**(arguments | change))
