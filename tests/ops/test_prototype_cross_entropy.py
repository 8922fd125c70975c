"""prototype_cross_entropy: that of distributions nobody writes, whoever computes it."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.ops import prototype_cross_entropy
from fastssl.reference import prototype_cross_entropy as reference
from tests.cases import WITH_ISAS
from tests.numerics import GRADIENT, LOSS

raw = torch.ops.fastssl
BACKENDS = ["native", "reference"]  # Triton: tests/kernels
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
NAN, INF = float("nan"), float("inf")
# (N, K, S, T, own): one of everything, sizes around vectors and chunks, DINO's crops, a crop that
# meets nobody, views that meet all, more views than crops.
PROBLEMS = [
    (1, 1, 1, 1, [-1]),
    (3, 7, 2, 2, [0, 1]),
    (5, 1031, 1, 1, [-1]),
    (2, 2112, 6, 2, [0, 1]),
    (4, 33, 3, 1, [0]),
    (3, 130, 2, 4, [0, -1, 1, -1]),
    (2, 16389, 2, 2, [1, 0]),
]
CENTERS = {
    "none": lambda t, k: None,
    "one": lambda t, k: torch.randn(k),
    "each": lambda t, k: torch.randn(t, k, dtype=torch.float64),
}


def logits(n, k, s, t, dtype=torch.float32, spread=1.0, device="cpu"):
    """S crops, T views, their distributions peaked about as a trained network's."""
    generator = torch.Generator().manual_seed(1000 * n + k + s)
    both = [spread * torch.randn(n, k, generator=generator) for _ in range(s + t)]
    both = [x.to(device, dtype) for x in both]
    return [x.requires_grad_() for x in both[:s]], both[s:]


def check(backend, student, teacher, center, own, temperatures=(0.1, 0.04), rounding=1):
    """Losses and gradients within the published bounds of float64 on the same rounded inputs."""
    with fastssl.use_backend(backend):
        loss = prototype_cross_entropy(student, teacher, center, own, *temperatures)
        upstream = torch.randn(len(loss), dtype=torch.float64).to(loss)
        gradients = torch.autograd.grad(loss, student, upstream)
    wide = [s.detach().double().requires_grad_() for s in student]
    right = reference(wide, teacher, center, own, *temperatures)
    d_right = torch.autograd.grad(right, wide, upstream)
    assert loss.dtype == torch.float64
    # A chunk's sum of powers about a largest one of 1 is float32's.
    assert (loss - right).abs().le(LOSS * right.abs() + 1e-7 * len(own) * len(student)).all()
    for s, (mine, d) in enumerate(zip(gradients, d_right, strict=True)):
        assert mine.dtype == student[s].dtype
        # What is left where prediction and target cancel is as exact as they are.
        met = sum(o != s for o in own)
        p = (wide[s].detach() / temperatures[0]).softmax(dim=1)
        size = (met * p * upstream[:, None] / temperatures[0]).norm()
        error = (mine.double() - d).norm()
        smallest = torch.finfo(mine.dtype).tiny * mine.numel() ** 0.5
        assert error <= rounding * GRADIENT[mine.dtype] * d.norm() + 2e-7 * size + smallest


@DTYPES
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_is_the_reference_in_float64(backend, center, dtype):
    for n, k, s, t, own in PROBLEMS:
        check(backend, *logits(n, k, s, t, dtype), CENTERS[center](t, k), own)


@DTYPES
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_wide_logits(backend, dtype):
    """±1e4 after the teacher's temperature, ±1e3 after the student's, and a centre as wide."""
    for own in ([0, 1], [-1, -1]):
        student, teacher = logits(3, 2100, 2, 2, dtype, spread=100.0)
        center = 100 * torch.randn(2, 2100, dtype=torch.float64)
        check(backend, student, teacher, center, own)
        # Nearly all of the logits in the centre, as Sinkhorn's potentials have it.
        near = torch.stack([t.double().mean(dim=0) for t in teacher]) + 0.1 * center / 100
        check(backend, student, [t[:1].expand(3, -1) for t in teacher], near, own)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_agreement_and_opposition(backend, scale):
    """A student that has learned (nothing is left but digits), one that is sure and wrong, rows
    without any preference, logits far from zero."""
    student, teacher = logits(4, 1500, 2, 2, spread=scale)
    same = [(t * 2.5).requires_grad_() for t in teacher]
    check(backend, same, teacher, None, [-1, -1])
    check(backend, [(-x).detach().requires_grad_() for x in same], teacher, None, [0, 1])
    flat = [torch.zeros_like(s).requires_grad_() for s in student]
    check(backend, flat, [torch.zeros_like(t) for t in teacher], None, [0, 1])
    far = [(s.detach() - 1e4).requires_grad_() for s in student]
    check(backend, far, [t + 1e4 for t in teacher], None, [0, 1])


def test_rising_and_falling_rows():
    """The largest logit in every chunk, in the first only, in the last only."""
    ramp = torch.linspace(-30, 30, 5000)
    for sign in (1, -1):
        student = [(sign * ramp).repeat(2, 1).requires_grad_(), ramp.repeat(2, 1).requires_grad_()]
        check("native", student, [ramp.repeat(2, 1), (-ramp).repeat(2, 1)], None, [0, 1])


def test_one_tensor_of_crops_gets_one_gradient():
    student, teacher = logits(3, 90, 4, 2)
    stacked = torch.stack(student).detach().requires_grad_()
    for backend in BACKENDS:
        with fastssl.use_backend(backend):
            parts = prototype_cross_entropy(student, teacher, own=[0, 1])
            whole = prototype_cross_entropy(stacked, torch.stack(teacher), own=[0, 1])
            assert torch.equal(parts, whole)
            d_parts = torch.autograd.grad(parts.sum(), student)
            [d_whole] = torch.autograd.grad(whole.sum(), stacked)
        assert torch.equal(torch.stack(d_parts), d_whole)


def test_views_of_a_larger_tensor():
    """Rows that do not lie together, and a teacher that is the student itself, as SwAV has it."""
    student, teacher = logits(6, 50, 2, 2)
    apart = [s.detach()[::2, 5:40].requires_grad_() for s in student]
    check("native", apart, [t.T[5:40].T[::2] for t in teacher], None, [0, 1])
    check("native", student, [s.detach() for s in student], None, [0, 1])


def test_only_what_wants_a_gradient_gets_one():
    student, teacher = logits(3, 20, 2, 2)
    teacher = [t.requires_grad_() for t in teacher]
    center = torch.zeros(20, requires_grad=True)
    student[1] = student[1].detach()
    for backend in BACKENDS:
        with fastssl.use_backend(backend):
            loss = prototype_cross_entropy(student, teacher, center, [0, 1])
            loss.sum().backward()
        assert student[0].grad is not None
        assert teacher[0].grad is center.grad is student[1].grad is None
        with torch.no_grad(), fastssl.use_backend(backend):
            assert not prototype_cross_entropy(student, teacher, center, [0, 1]).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_visible(backend):
    for value in (NAN, INF):
        for side in range(2):
            for place in (0, 1030, 1499):
                both = [[x.detach() for x in xs] for xs in logits(2, 1500, 2, 2)]
                both[side][0][1, place] = value
                with fastssl.use_backend(backend):
                    loss = prototype_cross_entropy(*both, None, [0, 1])
                assert not loss[1].isfinite()
                assert loss[0].isfinite()


def minus_infinity(backend, n, k, device="cpu"):
    """The teacher leaves prototypes out: in the second row the first ones, in the third all."""
    student, teacher = logits(n, k, 2, 2, device=device)
    teacher[0][1, : k - 3] = -INF
    teacher[1][0, k // 2] = -INF
    check(backend, [s.detach()[:2].requires_grad_() for s in student], [t[:2] for t in teacher],
          None, [0, 1])  # fmt: skip
    teacher[0][2] = -INF
    with fastssl.use_backend(backend):
        loss = prototype_cross_entropy(student, teacher, own=[0, 1])
        [gradient] = torch.autograd.grad(loss.nan_to_num(0).sum(), student[1])
    assert loss.isnan().tolist() == [False, False, True]
    assert gradient[:2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_prototypes(backend):
    minus_infinity(backend, 3, 3000)


def test_bitwise_at_any_number_of_threads():
    student, teacher = logits(23, 3000, 4, 2)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss = prototype_cross_entropy(student, teacher, own=[0, 1])
            results.append((loss, *torch.autograd.grad(loss.sum(), student)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_gradcheck():
    student, teacher = logits(2, 5, 3, 2, torch.float64)
    for backend in BACKENDS:
        with fastssl.use_backend(backend):  # float64 is the reference's
            assert torch.autograd.gradcheck(
                lambda *s: prototype_cross_entropy(s, teacher, own=[0, 1]), student
            )


def test_twice_in_one_graph_and_twice_backward():
    student, teacher = logits(3, 40, 2, 2)
    loss = prototype_cross_entropy(student, teacher, own=[0, 1])
    once = torch.autograd.grad(loss.sum(), student, retain_graph=True)
    for a, b in zip(once, torch.autograd.grad(loss.sum(), student), strict=True):
        assert torch.equal(a, b)
    twice = sum(prototype_cross_entropy(student, teacher, own=[0, 1]).sum() for _ in range(2))
    for a, b in zip(once, torch.autograd.grad(twice, student), strict=True):
        assert torch.equal(2 * a, b)


@pytest.mark.parametrize("center", CENTERS)
def test_opcheck(center):
    student, teacher = ([x.detach() for x in xs] for xs in logits(3, 20, 3, 2))
    options = (CENTERS[center](2, 20), [0, -1], 0.1, 0.04)
    torch.library.opcheck(raw.prototype_cross_entropy_fwd, (student, teacher, *options))
    loss, stats = raw.prototype_cross_entropy_fwd(student, teacher, *options)
    torch.library.opcheck(
        raw.prototype_cross_entropy_bwd, (loss, stats, student, teacher, *options)
    )


def test_compile_fullgraph():
    compiled = torch.compile(
        lambda student, teacher: prototype_cross_entropy(student, teacher, own=[0, 1]),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for n, k in ((4, 50), (3, 41)):
        student, teacher = logits(n, k, 3, 2)
        for backend in BACKENDS:
            with fastssl.use_backend(backend):
                eager = prototype_cross_entropy(student, teacher, own=[0, 1])
                traced = compiled(student, teacher)
            torch.testing.assert_close(eager, traced)
            for a, b in zip(
                torch.autograd.grad(eager.sum(), student),
                torch.autograd.grad(traced.sum(), student),
                strict=True,
            ):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_are_rounded_as_torch_does(dtype):
    """From the smallest halves to what is too large for one, to the nearest, ties to even."""
    student, teacher = logits(40, 700, 1, 1, dtype)
    single = [s.detach().float().requires_grad_() for s in student]
    upstream = torch.logspace(-12, 8, 40, dtype=torch.float64)
    gradients = []
    for s, t in ((student, teacher), (single, [x.float() for x in teacher])):
        loss = prototype_cross_entropy(s, t)
        gradients += torch.autograd.grad(loss, s, upstream)
    assert torch.equal(gradients[0], gradients[1].to(dtype))
    assert gradients[0].isinf().any() == (dtype == torch.float16)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(student=[]), ValueError, "student must hold at least one"),
        (dict(teacher=[]), ValueError, "teacher must hold at least one"),
        (dict(student=[torch.ones(3, 4, dtype=torch.int32)]), TypeError, r"student\[0\] must be"),
        (dict(student=[torch.ones(4)]), ValueError, r"student\[0\] must have shape"),
        (dict(student=[torch.ones(0, 4)]), ValueError, r"student\[0\] must have shape"),
        (dict(teacher=[torch.ones(3, 4).half()]), TypeError, r"dtype of student\[0\]"),
        (dict(teacher=[torch.ones(3, 5)]), ValueError, r"width of student\[0\], 4, not 5"),
        (dict(teacher=[torch.ones(2, 4)]), ValueError, r"the 3 rows of student\[0\], not 2"),
        (dict(center=torch.ones(5)), ValueError, r"center must have shape \[4\] or \[1, 4\]"),
        (dict(center=[1.0]), TypeError, "center must be a floating-point tensor, not list"),
        (dict(center=torch.ones(4, device="meta")), ValueError, "center must be on the device"),
        (dict(own=[0, 1]), ValueError, "own must hold for each of 1 views"),
        (dict(own=[1]), ValueError, "a crop from 0 to 0, or -1, not"),
        (dict(student_temperature=0.0), ValueError, "student_temperature must be positive"),
        (dict(teacher_temperature=NAN), ValueError, "teacher_temperature must be positive"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    usual = dict(student=[torch.ones(3, 4)], teacher=[torch.ones(3, 4)])
    with pytest.raises(error, match=says):
        prototype_cross_entropy(**(usual | change))
