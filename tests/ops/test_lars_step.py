"""lars_step against its reference in float64 on the same rounded inputs; the reference against the
authors' formulas: tests/optim/test_lars.py."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl.ops import ema_update_, lars_step
from fastssl.reference import lars_step as reference
from tests.cases import WITH_ISAS
from tests.numerics import relative

raw = torch.ops.fastssl.lars_step_fwd
BACKENDS = ["native", "reference"]  # Triton: tests/kernels
# One element, none, around a block and a chunk, a tensor of several chunks, filters.
SHAPES = [(1,), (0, 3), (1023,), (1025, 1), (32768,), (3, 32769), (7, 5, 3, 3), (64, 3, 7, 7), ()]
OPTIONS = [
    dict(order="classic"),
    dict(order="classic", nesterov=True, eps=1e-3),
    dict(order="torch", nesterov=True),
    dict(order="torch", separate_norms=True),
    dict(order="popular"),
    dict(order="popular", nesterov=True),
    dict(order="classic", trust_coefficient=None),
    dict(order="torch", trust_coefficient=None, weight_decay=0.0, nesterov=True),
]
SETTINGS = dict(momentum=0.9, weight_decay=0.05, trust_coefficient=0.02)
BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


def tensors(shapes=SHAPES, dtype=torch.float32, grads=None, averages=None):
    """Lists of parameters, gradients, velocities and, if they have a dtype, averages."""
    generator = torch.Generator().manual_seed(len(shapes))
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(of, size=1.0):
        return [(size * torch.randn(s, generator=generator)).to(of) for s in shapes]

    lists = [draw(dtype), draw(grads or dtype, 0.1), draw(wide, 0.01)]
    return (*lists, draw(averages) if averages else [])


def copies(lists, dtype=None):
    return tuple(
        [t.clone() if dtype is None else t.to(dtype, copy=True) for t in of] for of in lists
    )


def step(lists, backend=None, lr=0.5, ema_momentum=0.7, **options):
    with fastssl.use_backend(backend):
        lars_step(*lists[:3], lr, averages=lists[3], ema_momentum=ema_momentum,
                  **SETTINGS | options)  # fmt: skip


def truth(lists, lr=0.5, ema_momentum=0.7, **options):
    lists = copies(lists, torch.float64)
    reference(*lists[:3], lr, averages=lists[3], ema_momentum=ema_momentum, **SETTINGS | options)
    return lists


def check(lists, right, start):
    """Each result as near to the truth as its dtype allows; gradients as they were."""
    for name, of, true, first in zip(("w", "g", "v", "θ"), lists, right, start, strict=True):
        for i, (t, expected, before) in enumerate(zip(of, true, first, strict=True)):
            if name == "g":
                assert torch.equal(t, before)
                continue
            rounding = relative(expected.to(t.dtype), expected)
            error = relative(t, expected, before.double().norm().item())
            assert error <= 1.02 * rounding + 1e-6, (name, i)
            assert t.numel() == 0 or not torch.equal(t, before)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_is_the_reference_in_float64(backend, options):
    start = tensors(averages=torch.float32)
    lists = copies(start)
    step(lists, backend, **options)
    check(lists, truth(start, **options), start)


@pytest.mark.parametrize(
    ("dtype", "grads", "averages"),
    [
        (BFLOAT16, None, torch.float32),
        (FLOAT16, None, FLOAT16),
        (torch.float32, BFLOAT16, BFLOAT16),
        (BFLOAT16, torch.float32, torch.float64),
        (torch.float64, FLOAT16, None),
        (torch.float64, None, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_every_dtype(backend, dtype, grads, averages):
    start = tensors(SHAPES[:6], dtype, grads, averages)
    lists = copies(start)
    step(lists, backend, order="popular", nesterov=True)
    right = truth(start, order="popular", nesterov=True)
    # An average follows the parameter as it is stored.
    for average, w, t in zip(right[3], lists[0], start[3], strict=False):
        average.copy_(0.7 * t.double() + (1 - 0.7) * w.double())
    check(lists, right, start)


def test_mixed_dtypes_in_one_call():
    dtypes = (BFLOAT16, torch.float64)
    parts = [tensors([(5, 7), (40, 11)], dtype, averages=torch.float32) for dtype in dtypes]
    together = copies([*a, *b] for a, b in zip(*parts, strict=True))
    step(together)
    for part in parts:
        step(part)
    for of, a, b in zip(together, *parts, strict=True):
        assert all(torch.equal(t, u) for t, u in zip(of, [*a, *b], strict=True))


def layouts(t):
    """The same four times: by channels last, by its second dimension, with gaps, plain."""
    return [
        t.clone(memory_format=torch.channels_last),
        t.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([t, t], -1)[..., 0],
        t.clone(),
    ]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_layout(backend, alike):
    start = tensors([(6, 5, 3, 4)], averages=torch.float32)
    for k in range(4):
        lists = [[layouts(of[0])[k if alike else (k + i) % 4]] for i, of in enumerate(start)]
        strides = [of[0].stride() for of in lists]
        step(lists, backend)
        check(lists, truth(start), start)
        assert strides == [of[0].stride() for of in lists]


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[4]], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_norms(backend, options):
    start = tensors([(4, 9), (40, 1000), (2, 3), (2, 3)])
    start[0][0].zero_()
    for of in start[:3]:
        of[2].zero_()
    start[1][3].zero_()
    start[2][3].zero_()
    start[0][1].zero_()
    lists = copies(start)
    options = options | {"weight_decay": 0.0}
    step(lists, backend, **options)
    for of, true in zip(lists, truth(start, **options), strict=True):
        for t, expected in zip(of, true, strict=True):
            assert relative(t, expected) <= 1e-6
    assert not lists[0][2].any()


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e19, 1e25])
@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_may_leave_float32(backend, size):
    """The ratio undoes the gradient's size."""
    start = tensors([(3, 5), (40, 1000)])
    for g in start[1]:
        g.mul_(size)
        g.view(-1)[::3].mul_(0.01)
    for v in start[2]:
        v.zero_()
    lists = copies(start)
    step(lists, backend, weight_decay=0.0)
    check(lists, truth(start, weight_decay=0.0), start)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_the_reference(bad):
    start = tensors([(3, 5), (40, 1000), (4, 4)])
    start[1][0][1, 2] = bad
    start[0][1][7, 7] = bad
    results = [copies(start) for _ in BACKENDS]
    for lists, backend in zip(results, BACKENDS, strict=True):
        step(lists, backend)
    for a, b in zip(results[0], results[1], strict=True):
        for t, u in zip(a, b, strict=True):
            torch.testing.assert_close(t, u, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(results[0][0][2]).all()


def test_bitwise_the_same_at_any_number_of_threads():
    shapes = [(300, 700), (5, 7), (1000, 1000), (64, 64), (33000,), (129, 511)]
    start = tensors(shapes, averages=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7, 2):
            torch.set_num_threads(threads)
            results.append(copies(start))
            step(results[-1])
    finally:
        torch.set_num_threads(before)
    for lists in results[1:]:
        for of, first in zip(lists, results[0], strict=True):
            assert all(torch.equal(t, u) for t, u in zip(of, first, strict=True))


@pytest.mark.parametrize("m", [0.0, 0.3, 0.996, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_averages_are_those_of_a_pass_of_their_own(dtype, m):
    start = tensors(SHAPES, dtype, averages=torch.float32)
    together, apart = copies(start), copies(start)
    step(together, ema_momentum=m)
    step((*apart[:3], []))
    ema_update_(apart[3], apart[0], m)
    for of, expected in zip(together, apart, strict=True):
        assert all(torch.equal(t, u) for t, u in zip(of, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_in_tensors(backend):
    start = tensors(averages=torch.float32)
    plain, lists = copies(start), copies(start)
    step(plain, backend, lr=0.25, ema_momentum=0.75)
    step(
        lists, backend, lr=torch.tensor(0.25), ema_momentum=torch.tensor(0.75, dtype=torch.float64)
    )
    for of, expected in zip(lists, plain, strict=True):
        for t, u in zip(of, expected, strict=True):
            torch.testing.assert_close(t, u, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_graph_is_told(backend):
    w = torch.randn(3, 2, requires_grad=True)
    y = w.square().sum()
    step(([w], [torch.ones(3, 2)], [torch.zeros(3, 2)], []), backend)
    assert w.requires_grad
    assert w.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_nothing_to_do():
    lars_step([], [], [], 0.1, momentum=0.9)


def test_opcheck():
    args = (None, 0.1, 0.9, 0.01, 1e-3, 0.0, "classic", True, False, None, 0.9)
    torch.library.opcheck(raw, (*tensors([(3, 4), (5,)], averages=torch.float32), *args))


def test_compile_fullgraph():
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for backend in BACKENDS:
        lists = tensors([(3, 4), (5,)], averages=torch.float32)
        eager = copies(lists)
        step(eager, backend)
        with fastssl.use_backend(backend):
            compiled(lists)
        for of, expected in zip(lists, eager, strict=True):
            for t, u in zip(of, expected, strict=True):
                torch.testing.assert_close(t, u)


def pair():
    return dict(
        params=[torch.ones(2, 3), torch.ones(4)],
        grads=[torch.ones(2, 3), torch.ones(4)],
        velocities=[torch.ones(2, 3), torch.ones(4)],
        lr=0.1,
        momentum=0.9,
    )


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(grads=[torch.ones(2, 3)]), ValueError, "grads must be 2 tensors, not 1"),
        (dict(averages=[torch.ones(2, 3)]), ValueError, "averages must be 2 tensors, not 1"),
        (
            dict(grads=[torch.ones(2, 3), torch.ones(5)]),
            ValueError,
            r"grads\[1\] must have the shape of params\[1\], \[4\], not \[5\]",
        ),
        (
            dict(velocities=[torch.ones(2, 3).half(), torch.ones(4)]),
            TypeError,
            r"velocities\[0\] must be torch.float32 for torch.float32, not torch.float16",
        ),
        (
            dict(params=[torch.ones(2, 3).int(), torch.ones(4)]),
            TypeError,
            r"params\[0\] must be a float32, .* not torch.int32",
        ),
        (
            dict(grads=[torch.ones(2, 3), torch.ones(4, device="meta")]),
            ValueError,
            r"grads\[1\] must be on the device of params\[0\], cpu, not meta",
        ),
        (dict(grads=[torch.ones(2, 3).to_sparse(), torch.ones(4)]), TypeError, "sparse_coo"),
        (dict(order="late"), ValueError, "classic, torch, popular, not 'late'"),
        (dict(order="popular", separate_norms=True), ValueError, "not for the popular order"),
        (dict(lr=torch.ones(2)), ValueError, r"lr must be a float or a 0-dim .* shape \[2\]"),
        (dict(ema_momentum=torch.ones((), dtype=torch.int64)), ValueError, "ema_momentum must be"),
        (dict(lr=torch.ones((), device="meta")), ValueError, "lr must be on the device of params"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        lars_step(**(pair() | change))


def test_shared_memory_is_refused():
    lists = pair()
    lists["velocities"][1] = lists["params"][1]
    with pytest.raises(RuntimeError, match="share memory"), fastssl.use_backend("native"):
        lars_step(**lists)
