"""SwaVLoss, DINOLoss, IBOTPatchLoss and KoLeoLoss of the compat module beside lightly's."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from fastssl.compat import lightly as compat
from tests.functional.comparison import peer
from tests.functional.test_swav import crops

NAMES = ["SwaVLoss", "DINOLoss", "IBOTPatchLoss", "KoLeoLoss"]


@pytest.fixture(scope="module")
def lightly():
    return peer("lightly.loss", "lightly")


def both(lightly, name, *arguments, **options):
    return getattr(compat, name)(*arguments, **options), getattr(lightly, name)(
        *arguments, **options
    )


def alike(mine, theirs, *leaves):
    """Values and gradients of the same call, to float32."""
    torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=0)
    for a, b in zip(
        torch.autograd.grad(mine.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_state(lightly, name):
    for method in ("__init__", "forward"):
        mine, theirs = (
            inspect.signature(getattr(getattr(home, name), method)).parameters
            for home in (compat, lightly)
        )
        assert [(p.name, p.default) for p in mine.values()] == [
            (p.name, p.default) for p in theirs.values()
        ]
    mine, theirs = (loss.state_dict() for loss in both(lightly, name))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_swav(lightly):
    high, low = crops(2, 12, 20), crops(3, 12, 20, seed=1)
    queue = [x.detach() for x in crops(2, 30, 20, seed=2)]
    for options in ({}, dict(temperature=0.3, sinkhorn_iterations=2, sinkhorn_epsilon=0.1)):
        mine, theirs = both(lightly, "SwaVLoss", **options)
        for further in ((), (queue,)):
            alike(mine(high, low, *further), theirs(high, low, *further), *high, *low)


def test_dino(lightly):
    options = dict(warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=4)
    mine, theirs = both(lightly, "DINOLoss", 20, **options, student_temp=0.2, center_momentum=0.7)
    student = crops(4, 12, 20)
    teacher = [t.detach() for t in crops(2, 12, 20, seed=1)]
    for call in (dict(epoch=0), dict(epoch=2), dict(epoch=9), dict(teacher_temp=0.05), {}):
        alike(mine(teacher, student, **call), theirs(teacher, student, **call), *student)
        torch.testing.assert_close(mine.center, theirs.center)
    again = copy.deepcopy(mine)
    again.update_center(torch.stack(teacher))
    theirs.update_center(torch.stack(teacher))
    torch.testing.assert_close(again.center, theirs.center)


def test_ibot(lightly):
    mine, theirs = both(lightly, "IBOTPatchLoss", 20)
    mask = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[2] = False
    [student], [teacher] = crops(1, int(mask.sum()), 20), crops(1, int(mask.sum()), 20, seed=1)
    teacher = teacher.detach()
    for call in ({}, dict(teacher_temp=0.06)):
        alike(mine(teacher, student, mask, **call), theirs(teacher, student, mask, **call), student)
        torch.testing.assert_close(mine.center.value, theirs.center.value)


def test_koleo(lightly):
    mine, theirs = both(lightly, "KoLeoLoss")
    [x] = crops(1, 40, 16)
    alike(mine(x), theirs(x), x)


@pytest.mark.parametrize(
    ("name", "options"),
    [("DINOLoss", dict(center_mode="max")), ("IBOTPatchLoss", dict(center_mode="max")),
     ("KoLeoLoss", dict(p=1))],
)  # fmt: skip
def test_errors_name_the_argument(name, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        getattr(compat, name)(**options)
