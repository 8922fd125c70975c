"""dino_loss and ibot_patch_loss, and the modules that keep their centre."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import dino_loss, ibot_patch_loss
from tests.functional.comparison import BACKENDS, agree, peer
from tests.functional.test_swav import codes, crops
from tests.numerics import GRADIENT, LOSS


def formula(student, teacher, center=None, student_temperature=0.1, teacher_temperature=0.04,
            assignment="centering", iterations=3):  # fmt: skip
    if assignment == "sinkhorn":
        q = codes(torch.cat(list(teacher)), teacher_temperature, iterations).split(len(teacher[0]))
    else:
        middle = 0 if center is None else center.double()
        q = [((t.double() - middle) / teacher_temperature).softmax(1) for t in teacher]
    losses = [
        -(q[t] * F.log_softmax(s / student_temperature, dim=1)).sum(1).mean()
        for t in range(len(teacher))
        for i, s in enumerate(student)
        if i != t
    ]
    return sum(losses) / len(losses)


PROBLEMS = [
    (2, 2, 5, 7, {}),
    (6, 2, 9, 1030, dict(center=torch.linspace(-1, 1, 1030), teacher_temperature=0.07)),
    (4, 2, 20, 64, dict(assignment="sinkhorn", student_temperature=0.2)),
    (1, 3, 4, 30, {}),
    (3, 1, 4, 30, dict(assignment="sinkhorn", iterations=1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_formula(backend, dtype):
    for count, views, n, k, options in PROBLEMS:
        student = crops(count, n, k, dtype)
        teacher = [t.detach() for t in crops(views, n, k, dtype, seed=1)]
        with fastssl.use_backend(backend):
            loss = dino_loss(student, teacher, **options)
            gradients = torch.autograd.grad(loss, student)
        wide = [s.detach().double().requires_grad_() for s in student]
        right = formula(wide, teacher, **options)
        assert abs(loss.item() - right.item()) <= LOSS * right.item()
        d_right = torch.autograd.grad(right, wide, allow_unused=True, materialize_grads=True)
        for mine, d in zip(gradients, d_right, strict=True):
            assert (mine.double() - d).norm() <= GRADIENT[dtype] * d.norm()


def test_is_lightlys():
    loss = peer("lightly.loss", "lightly").DINOLoss(20).double()
    loss.center += torch.linspace(-1, 1, 20)
    center = loss.center.flatten().clone()
    student = crops(5, 12, 20)
    teacher = [t.detach().double() for t in crops(2, 12, 20, seed=1)]

    def theirs(*crops):
        loss.center = center.view(1, 1, -1)  # or it would move on
        return loss(teacher, list(crops), teacher_temp=0.0625)  # which they round to float32

    agree(lambda *s: dino_loss(s, teacher, center, teacher_temperature=0.0625), theirs, *student)


@pytest.mark.parametrize("counted", [None, 9])
def test_ibot_counts_every_image_once(counted):
    images = torch.tensor([4, 0, 4, 4, 7, 0, 2])
    [student], [teacher] = crops(1, 7, 40), crops(1, 7, 40, seed=1)
    loss = ibot_patch_loss(student, teacher, images=images, num_images=counted)
    rows = -((teacher.double() / 0.04).softmax(1) * (student.double() / 0.1).log_softmax(1)).sum(1)
    means = [rows[images == i].mean() for i in images.unique()]
    right = sum(means) / (counted or len(means))
    torch.testing.assert_close(loss.double(), right, rtol=1e-6, atol=0)
    [mine], [d] = (torch.autograd.grad(x, student) for x in (loss, right))
    torch.testing.assert_close(mine, d, rtol=1e-4, atol=1e-6)
    plain = ibot_patch_loss(student, teacher)
    torch.testing.assert_close(plain.double(), rows.mean(), rtol=1e-6, atol=0)
    q = codes(teacher, 0.04, 3)
    by_sinkhorn = -(q * (student.double() / 0.1).log_softmax(1)).sum(1).mean()
    mine = ibot_patch_loss(student, teacher, assignment="sinkhorn")
    torch.testing.assert_close(mine.double(), by_sinkhorn, rtol=1e-6, atol=0)


def test_ibot_is_lightlys():
    loss = peer("lightly.loss", "lightly").IBOTPatchLoss(20).double()
    masked = torch.tensor([1, 2, 0, 8, 2, 4])  # of an image; their inverses are float32's there
    mask = (torch.arange(12) < masked[:, None]).view(6, 3, 4)
    images = torch.arange(6)[:, None, None].expand(mask.shape)[mask]
    [student], [teacher] = crops(1, len(images), 20), crops(1, len(images), 20, seed=1)
    teacher = teacher.detach().double()

    def theirs(student):
        loss.center.center = torch.zeros(1, 20).double()
        return loss(teacher, student, mask, teacher_temp=0.0625)

    options = dict(images=images, num_images=6, teacher_temperature=0.0625)
    agree(lambda s: ibot_patch_loss(s, teacher, **options), theirs, student)


def test_the_centre_moves_after_the_loss():
    module = fastssl.DINOLoss(20, center_momentum=0.8)
    student, teacher = crops(4, 6, 20), [t.detach() for t in crops(2, 6, 20, seed=1)]
    center = torch.zeros(20)
    for _ in range(2):
        loss = module(student, teacher)
        torch.testing.assert_close(loss, dino_loss(student, teacher, center))
        center = 0.8 * center + 0.2 * torch.cat(teacher).mean(0)
        torch.testing.assert_close(module.center, center)
        loss.backward()  # the centre has moved, the loss's has not
    with torch.no_grad():
        module(student, teacher)
    module([s.detach() for s in student], teacher)
    torch.testing.assert_close(module.center, center)
    assert torch.equal(module.state_dict()["center"], module.center)
    patches = fastssl.IBOTPatchLoss(20)
    patches(student[0], teacher[0], torch.arange(6) // 2, num_images=4).backward()
    torch.testing.assert_close(patches.center, 0.1 * teacher[0].mean(0))


def test_sinkhorn_leaves_the_centre():
    module = fastssl.DINOLoss(20, assignment="sinkhorn", teacher_temperature=0.06, iterations=2)
    student, teacher = torch.stack(crops(4, 6, 20)), torch.stack(crops(2, 6, 20, seed=1)).detach()
    right = dino_loss(
        student, teacher, teacher_temperature=0.06, assignment="sinkhorn", iterations=2
    )
    assert torch.equal(module(student, teacher), right)
    assert module.center.norm() == 0


def test_the_teachers_temperature_warms_up():
    module = fastssl.DINOLoss(8, teacher_temperature=0.07, warmup_teacher_temperature=0.04,
                              warmup_epochs=5)  # fmt: skip
    right = [*torch.linspace(0.04, 0.07, 5).tolist(), 0.07, 0.07]
    got = [module.temperature_at(epoch) for epoch in range(7)]
    assert got == pytest.approx(right)
    assert module.temperature_at(0.5) == pytest.approx((right[0] + right[1]) / 2)
    student, teacher = crops(2, 3, 8), [t.detach() for t in crops(2, 3, 8, seed=1)]
    with torch.no_grad():
        warm = module(student, teacher, epoch=0)
        torch.testing.assert_close(warm, dino_loss(student, teacher, teacher_temperature=0.04))
        torch.testing.assert_close(
            module(student, teacher), dino_loss(student, teacher, teacher_temperature=0.07)
        )
    assert fastssl.DINOLoss(8).temperature_at(0) == 0.04


def test_compile_fullgraph():
    student, teacher = crops(3, 6, 10), [t.detach() for t in crops(2, 6, 10, seed=1)]
    traced = torch.compile(dino_loss, fullgraph=True, backend="aot_eager")
    for options in ({}, dict(assignment="sinkhorn"), dict(center=torch.ones(10))):
        torch.testing.assert_close(
            traced(student, teacher, **options), dino_loss(student, teacher, **options)
        )


ROWS = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(teacher=[]), ValueError, "teacher must hold at least one"),
        (dict(student=[ROWS], teacher=[ROWS]), ValueError, "none meets itself"),
        (dict(teacher=[ROWS[:2]]), ValueError, r"teacher\[0\] must have the shape of student\[0\]"),
        (dict(teacher=[ROWS.double()]), TypeError, "one dtype"),
        (dict(student=[ROWS.long()] * 2), TypeError, r"student\[0\] must be a floating-point"),
        (dict(center=torch.ones(5)), ValueError, r"center must have shape \[4\], not \[5\]"),
        (dict(center=torch.ones(4).long()), TypeError, "center must be a floating-point"),
        (dict(center=torch.ones(4), assignment="sinkhorn"), ValueError, "center must be None"),
        (dict(assignment="softmax"), ValueError, "assignment must be"),
        (dict(student_temperature=0.0), ValueError, "student_temperature must be positive"),
        (dict(teacher_temperature=-1.0), ValueError, "teacher_temperature must be positive"),
        (dict(assignment="sinkhorn", iterations=0), ValueError, "iterations must be at least 1"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        dino_loss(**(dict(student=[ROWS] * 2, teacher=[ROWS]) | change))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(images=torch.ones(3)), TypeError, "images must be a tensor of integers"),
        (dict(images=torch.ones(2).long()), ValueError, r"images must have shape \[3\]"),
        (dict(num_images=2), ValueError, "num_images needs images"),
        (dict(images=torch.ones(3).long(), num_images=0), ValueError, "num_images must be pos"),
        (dict(teacher=ROWS[:, :3]), ValueError, r"teacher\[0\] must have the shape"),
    ],
)
def test_ibot_errors(change, error, says):
    with pytest.raises(error, match=says):
        ibot_patch_loss(**(dict(student=ROWS, teacher=ROWS) | change))


@pytest.mark.parametrize(
    "change", [dict(num_prototypes=0), dict(center_momentum=1.5)], ids=lambda c: next(iter(c))
)
def test_module_errors(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        fastssl.DINOLoss(**change)
