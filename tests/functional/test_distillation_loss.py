"""Cross-entropy with a teacher's soft labels."""

from __future__ import annotations

import pytest
import torch

from fastssl.functional import distillation_loss


def logits(n=7, c=5, scale=3.0, dtype=torch.float64):
    return [(scale * torch.randn(n, c)).to(dtype) for _ in range(2)]


def formula(student, teacher, t):
    """Rows of −Σ_y P_t log P_s, one exponential at a time."""
    rows = []
    for s, z in zip(student, teacher, strict=True):
        p = [(v / t).exp() / sum((w / t).exp() for w in z) for v in z]
        q = [(v / t).exp() / sum((w / t).exp() for w in s) for v in s]
        rows.append(-sum(a * b.log() for a, b in zip(p, q, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_is_the_formula_with_its_gradient(temperature):
    student, teacher = logits()
    t = torch.tensor(temperature, dtype=torch.float64)
    upstream = torch.randn(7, dtype=torch.float64)
    results = []
    for function in (
        lambda s, t: distillation_loss(s, teacher, t, reduction="none"),
        lambda s, t: formula(s, teacher, t),
    ):
        inputs = student.clone().requires_grad_(), t.clone().requires_grad_()
        rows = function(*inputs)
        results.append((rows, *torch.autograd.grad(rows, inputs, upstream)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_reductions():
    student, teacher = logits()
    rows = formula(student, teacher, 0.5)
    torch.testing.assert_close(distillation_loss(student, teacher, 0.5), rows.mean())
    summed = distillation_loss(student, teacher, 0.5, reduction="sum")
    torch.testing.assert_close(summed, rows.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_are_computed_in_float32(dtype):
    student, teacher = logits(50, 11, dtype=dtype)
    loss = distillation_loss(student, teacher.float(), 0.3, reduction="none")
    assert loss.dtype == torch.float32
    truth = distillation_loss(student.double(), teacher.double(), 0.3, reduction="none")
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=1e-6)


def test_least_where_both_agree():
    _, teacher = logits()
    student = (teacher + 4).requires_grad_()  # the same probabilities
    loss = distillation_loss(student, teacher, 0.7)
    p = torch.softmax(teacher / 0.7, 1)
    torch.testing.assert_close(loss, -(p * p.log()).sum(1).mean())
    loss.backward()
    assert student.grad.abs().max() < 1e-15
    hard = torch.tensor([[40.0, -40.0]], dtype=torch.float64)  # one class: the usual cross-entropy
    student, _ = logits(1, 2)
    expected = torch.nn.functional.cross_entropy(student, torch.tensor([0]))
    torch.testing.assert_close(distillation_loss(student, hard), expected)


def test_extreme_logits_and_impossible_classes():
    student = torch.tensor([[1e4, -1e4, 0.0], [1.0, float("-inf"), 2.0]], requires_grad=True)
    teacher = torch.tensor([[1e4, -1e4, 0.0], [1.0, float("-inf"), 2.0]])
    loss = distillation_loss(student, teacher, 0.01, reduction="none")
    assert torch.isfinite(loss).all()
    loss.sum().backward()
    assert torch.isfinite(student.grad).all()
    assert distillation_loss(student, teacher * float("nan")).isnan()
    assert distillation_loss(student * float("nan"), teacher).isnan()


def test_the_teacher_gets_no_gradient_and_it_compiles():
    student, teacher = (x.requires_grad_() for x in logits(dtype=torch.float32))
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None
    compiled = torch.compile(distillation_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher), distillation_loss(student, teacher))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_logits": torch.zeros(3, 4)}, ValueError, r"\[3, 2\] and \[3, 4\]"),
        ({"student_logits": torch.zeros(3)}, ValueError, r"\[N, C\]"),
        ({"student_logits": torch.zeros(0, 2), "teacher_logits": torch.zeros(0, 2)}, ValueError,
         "N, C >= 1"),
        ({"teacher_logits": torch.zeros(3, 2).long()}, TypeError, "teacher_logits must be a float"),
        ({"teacher_logits": torch.zeros(3, 2, device="meta")}, ValueError, "one device"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": torch.ones(2)}, ValueError, "0-dim"),
        ({"reduction": "max"}, ValueError, "reduction must be"),
    ],
)  # fmt: skip
def test_wrong_input_says_what_is_wrong(change, error, message):
    given = {"student_logits": torch.zeros(3, 2), "teacher_logits": torch.zeros(3, 2)} | change
    with pytest.raises(error, match=message):
        distillation_loss(**given)
