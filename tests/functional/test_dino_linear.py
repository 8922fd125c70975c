"""dino_loss of features and prototypes: that of their logits, which are never all there."""

from __future__ import annotations

import sys

import pytest
import torch

import fastssl
from fastssl.functional import dino_loss
from fastssl.ops import prototype_linear_cross_entropy
from tests.functional.comparison import BACKENDS

MODULE = sys.modules[prototype_linear_cross_entropy.__module__]


def problem(dtype=torch.float32, crops=4, views=2, n=13, d=6, e=5, k=70):
    generator = torch.Generator().manual_seed(0)
    shapes = ((crops, n, d), (k, d), (views, n, e), (k, e))
    student, weight, teacher, other = (
        (0.5 * torch.randn(*shape, generator=generator)).to(dtype) for shape in shapes
    )
    return student.requires_grad_(), weight.requires_grad_(), teacher, other


def wide(student, weight, teacher, other, **options):
    leaves = [t.detach().double().requires_grad_() for t in (student, weight)]
    logits = leaves[0] @ leaves[1].T, teacher.double() @ other.double().T
    loss = dino_loss(*logits, **options)
    return loss, torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("samples", [1, 5, 100])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_loss_of_the_logits(backend, samples, dtype, monkeypatch):
    monkeypatch.setitem(MODULE.BLOCK, "cpu", samples * 6 * 70)
    student, weight, teacher, other = problem(dtype)
    for options in (dict(center=torch.linspace(-1, 1, 70)), dict(assignment="sinkhorn")):
        with fastssl.use_backend(backend):
            loss = dino_loss(student, teacher, prototypes=(weight, other), **options)
            gradients = torch.autograd.grad(3 * loss, (student, weight))
        right, d_right = wide(student, weight, teacher, other, **options)
        # Logits of bfloat16 features are bfloat16, as the layer's are.
        bound = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-12}[dtype]
        assert abs(loss.item() - right.item()) <= bound * right.item()
        for mine, d in zip(gradients, d_right, strict=True):
            assert mine.dtype == dtype
            assert (mine.double() - 3 * d).norm() <= bound * 3 * d.norm()


def test_sequences_frozen_sides_and_validation():
    student, weight, teacher, other = problem()
    both = (weight, other)
    whole = dino_loss(student, teacher, prototypes=both)
    views = [s.detach().requires_grad_() for s in student]
    parts = dino_loss(views, list(teacher), prototypes=both)
    assert torch.equal(whole, parts)
    expected = torch.autograd.grad(whole, (student, weight))
    d_parts = torch.autograd.grad(parts, views)
    assert torch.equal(torch.stack(d_parts), expected[0])
    frozen = dino_loss(student, teacher, prototypes=(weight.detach(), other))
    assert torch.equal(torch.autograd.grad(frozen, student)[0], expected[0])
    fixed = dino_loss(student.detach(), teacher, prototypes=both)
    assert torch.equal(torch.autograd.grad(fixed, weight)[0], expected[1])
    with torch.no_grad():
        assert torch.equal(dino_loss(student, teacher, prototypes=both), whole)


def test_autocast_does_not_lower_it():
    student, weight, teacher, other = problem()
    right = dino_loss(student, teacher, prototypes=(weight, other))
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(student, teacher, prototypes=(weight, other))
    assert torch.equal(loss, right)
    loss.backward()


def test_a_second_backward_says_so():
    student, weight, teacher, other = problem()
    loss = dino_loss(student, teacher, prototypes=(weight, other))
    torch.autograd.grad(loss, student, retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again for a second backward"):
        torch.autograd.grad(loss, student)


def test_the_module_moves_its_centre_by_the_same_mean():
    student, weight, teacher, other = problem()
    by_logits, by_features = fastssl.DINOLoss(70), fastssl.DINOLoss(70)
    for _ in range(2):
        logits = student @ weight.T, teacher @ other.T
        right, mine = by_logits(*logits), by_features(student, teacher, prototypes=(weight, other))
        torch.testing.assert_close(mine, right)
        torch.testing.assert_close(by_features.center, by_logits.center)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(prototypes=torch.ones(70, 6)), TypeError, "prototypes must be two tensors"),
        (dict(prototypes=(torch.ones(70, 6), torch.ones(60, 5))), ValueError,
         r"prototypes\[1\] must have shape \[70, 5\]"),
        (dict(prototypes=(torch.ones(70, 7), torch.ones(70, 5))), ValueError, r"prototypes\[0\]"),
        (dict(prototypes=(torch.ones(70, 6), torch.ones(70, 5).half())), TypeError, "one dtype"),
        (dict(teacher=torch.ones(2, 9, 5)), ValueError, "the 13 rows of student"),
        (dict(center=torch.ones(6)), ValueError, r"center must have shape \[70\]"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, says):
    student, weight, teacher, other = problem()
    usual = dict(student=student, teacher=teacher, prototypes=(weight, other))
    with pytest.raises(error, match=says):
        dino_loss(**(usual | change))
