"""ema_update_: the formula, for any mixture of tensors, whoever computes it."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastssl
from fastssl.ops import ema_update_
from fastssl.reference import ema_update as reference
from tests.cases import WITH_ISAS

raw = torch.ops.fastssl.ema_update_fwd
BACKENDS = ["native", "reference"]  # Triton: tests/kernels
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PAIRS = list(itertools.product(FLOATS, FLOATS))
# Of a scalar, tiny, prime, more than a vector, more than a chunk.
SHAPES = [(), (1,), (3, 5), (0, 4), (7, 1, 11), (257,), (40_009,)]
ROUNDING = {  # of the nearest number: relative, and absolute where it is subnormal
    torch.float64: (2.0**-52, 0),
    torch.float32: (2.0**-24, 0),
    torch.bfloat16: (2.0**-8, 0),
    torch.float16: (2.0**-11, 2.0**-25),
}
NAN, INF = float("nan"), float("inf")


def tensors(shapes, dtypes, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator) * scale).to(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def mixture(seed=0):
    """Every shape in every pair of dtypes, and integers and booleans among them."""
    shapes = [shape for shape in SHAPES for _ in PAIRS]
    targets = tensors(shapes, [t for t, _ in PAIRS] * len(SHAPES), seed)
    sources = tensors(shapes, [s for _, s in PAIRS] * len(SHAPES), seed + 1)
    generator = torch.Generator().manual_seed(seed)
    for place, dtype in enumerate((torch.int64, torch.uint8, torch.bool, torch.int32)):
        for some, low in ((targets, 0), (sources, 1)):
            some.insert(
                9 * place,
                torch.randint(low, low + 2, (3, place + 1), generator=generator).to(dtype),
            )
    return targets, sources


def check(result, target, source, m):
    assert result.dtype == target.dtype
    assert result.shape == target.shape
    if not target.is_floating_point():
        assert torch.equal(result, source)
        return
    t, s = target.double(), source.double()
    relative, absolute = ROUNDING[target.dtype]
    wide = torch.float64 in (target.dtype, source.dtype)
    computed = (t.abs() + s.abs()) * (2.0**-51 if wide else 2.0**-23)
    truth = m * t + (1 - m) * s
    assert ((result.double() - truth).abs() <= computed + truth.abs() * relative + absolute).all()


@pytest.mark.parametrize("m", [0.0, 0.3, 0.5, 0.996, 0.9999, 1.0])
@pytest.mark.parametrize("backend", WITH_ISAS)
def test_the_formula_in_every_mixture_of_dtypes(backend, m):
    targets, sources = mixture()
    results, untouched = [t.clone() for t in targets], [s.clone() for s in sources]
    with fastssl.use_backend(backend):
        assert ema_update_(results, sources, m) is None
    for result, target, source in zip(results, targets, sources, strict=True):
        check(result, target, source, m)
        if m == 0:
            assert torch.equal(result, source.to(target.dtype))
        if m == 1 and target.is_floating_point():
            assert torch.equal(result, target)
    assert all(map(torch.equal, sources, untouched))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_momentum_may_be_a_tensor(backend, dtype):
    scalar = torch.tensor(0.97, dtype=dtype)
    targets, sources = mixture()
    results = [t.clone() for t in targets]
    with fastssl.use_backend(backend):
        ema_update_(results, sources, scalar)
    for result, target, source in zip(results, targets, sources, strict=True):
        check(result, target, source, scalar.item())


def test_is_torchs_lerp():
    """Where there is one: float32 alone, small steps."""
    targets, sources = (tensors(SHAPES, [torch.float32] * len(SHAPES), seed) for seed in (0, 1))
    theirs = [t.clone() for t in targets]
    ema_update_(targets, sources, 0.99)
    torch._foreach_lerp_(theirs, sources, 1 - 0.99)
    for mine, right in zip(targets, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=2.0**-22, atol=2.0**-24)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_and_nan(backend):
    """At the ends the other side does not matter; between them it is torch.lerp's."""
    odd = torch.tensor([NAN, INF, -INF, 1.0, 3e38])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for m, expected in (
            (1.0, [2.0] * 5),
            (0.0, odd),
            (0.9, [NAN, INF, -INF, 1.9, 3e37]),
            (0.2, [NAN, NAN, NAN, 1.2, 2.4e38]),  # as torch.lerp has it
        ):
            target, source = torch.full((5,), 2.0, dtype=dtype), odd.to(dtype)
            with fastssl.use_backend(backend):
                ema_update_([target], [source], m)
            expected = torch.as_tensor(expected, dtype=torch.float32)
            torch.testing.assert_close(target.float(), expected, rtol=8e-3, atol=0, equal_nan=True)
        target = torch.tensor([NAN, INF, -INF], dtype=dtype)
        with fastssl.use_backend(backend):
            ema_update_([target], [torch.ones(3)], torch.tensor(0.0))
            assert target.tolist() == [1, 1, 1]
            ema_update_([target], [torch.ones(3)], torch.tensor(NAN))
            assert target.isnan().all()


@pytest.mark.instruction_sets
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_every_number_of_a_narrow_dtype_is_read_and_written(dtype, wide):
    """Conversion is the kernel's own: subnormal, infinite, NaN; ties and overflow."""
    everything = torch.arange(2**16).to(torch.int16).view(dtype)
    target = torch.zeros(2**16, dtype=wide)
    ema_update_([target], [everything], 0.0)
    torch.testing.assert_close(target, everything.to(wide), rtol=0, atol=0, equal_nan=True)

    ordered = everything[everything.isfinite()].float().unique()
    between = [(ordered[1:] + ordered[:-1]) / 2]  # ties
    between += [torch.nextafter(between[0], torch.tensor(side)) for side in (INF, -INF)]
    edges = torch.tensor([65519.996, 65520.0, 3.3961776e38, 3.4e38, 1e-8, -1e-42, INF, NAN])
    numbers = torch.cat([*between, edges, -edges]).to(wide)
    target = torch.zeros(len(numbers), dtype=dtype)
    ema_update_([target], [numbers], 0.0)
    torch.testing.assert_close(target, numbers.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(target.signbit() | target.isnan(), numbers.signbit() | numbers.isnan())


def test_a_float32_average_of_bfloat16_weights_moves_and_a_bfloat16_one_does_not():
    """The reason for master copies, at m = 0.999 and a tenth of the way in a hundred steps."""
    source = torch.full((64,), 1.5, dtype=torch.bfloat16)
    narrow, master = torch.ones(64, dtype=torch.bfloat16), torch.ones(64)
    for _ in range(100):
        ema_update_([narrow, master], [source, source], 0.999)
    assert (narrow == 1).all()
    torch.testing.assert_close(master, torch.full((64,), 1.5 - 0.5 * 0.999**100))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    def views(seed):
        base = torch.randn(6, 4, 5, 8, generator=torch.Generator().manual_seed(seed))
        return [
            base[0, 0].clone(),
            base[1].to(memory_format=torch.contiguous_format).clone()[:, ::2],
            base[2].clone().transpose(0, 2),
            base[3:4].clone(memory_format=torch.channels_last),
            base[4].clone()[1:3, :, 3],
        ]

    plain, others = views(0), views(1)
    expected = reference(plain, others, 0.7)
    for arrange in (
        lambda s: s,
        lambda s: [t.contiguous() for t in s],
        lambda s: [t.mT.contiguous().mT for t in s],
    ):
        targets, sources = views(0), arrange(views(1))
        whole = [t._base.clone() if t._base is not None else None for t in targets]
        with fastssl.use_backend(backend):
            ema_update_(targets, sources, 0.7)
        for target, right in zip(targets, expected, strict=True):
            torch.testing.assert_close(target, right)
        kept = targets[1]._base[:, 1::2]
        assert torch.equal(kept, whole[1][:, 1::2])  # what lies between is left alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_memory(backend):
    a, b = torch.randn(10), torch.randn(10)
    block = torch.randn(30)
    with fastssl.use_backend(backend):
        # One source for several targets; neighbours in one block; a target that is its source.
        own = torch.tensor([1.0, INF, NAN])
        targets, before = [block[:10], block[10:20], own], block.clone()
        ema_update_(targets, [a, a, own], 0.5)
        torch.testing.assert_close(block[:20], torch.lerp(before[:20], a.repeat(2), 0.5))
        torch.testing.assert_close(own, torch.tensor([1.0, INF, NAN]), equal_nan=True)
        before = block.clone()
        for targets, sources, says in (
            ([a, b, a], [b, b, b], "share memory"),
            ([block[:10], block[9:19]], [a, a], "share memory"),
            ([block[:10]], [block[5:15]], "share memory"),
            ([block[10:20], a], [b, block[5:15]], "share memory"),
            ([torch.zeros(1).expand(10)], [a], "is expanded"),
        ):
            with pytest.raises(RuntimeError, match=says):
                ema_update_(targets, sources, 0.5)
        assert torch.equal(block, before)


def test_hundreds_of_tiny_tensors_and_none():
    ema_update_([], [], 0.5)
    ema_update_([torch.empty(0)], [torch.empty(0)], 0.5)
    targets, sources = (
        [torch.zeros(i % 3) for i in range(700)],
        [torch.ones(i % 3) for i in range(700)],
    )
    ema_update_(targets, sources, 0.75)
    assert all((t == 0.25).all() for t in targets)


def test_bitwise_the_same_at_any_number_of_threads():
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            targets, sources = mixture()
            targets.append(torch.linspace(-1, 1, 300_007))
            sources.append(targets[-1].sin())
            ema_update_(targets, sources, 0.77)
            results.append(targets)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mutation_is_seen_by_autograd_and_there_is_no_gradient(backend):
    weight = torch.randn(4, requires_grad=True)
    loss = (weight * weight).sum()  # saves the weight
    version = weight._version
    with fastssl.use_backend(backend):
        ema_update_([weight], [torch.randn(4, requires_grad=True)], 0.5)
    assert weight._version > version
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode(), fastssl.use_backend(backend):
        inference = torch.zeros(3)
        ema_update_([inference], [torch.ones(3)], 0.5)
        assert (inference == 0.5).all()


@pytest.mark.parametrize("scalar", [None, torch.tensor(0.9)], ids=["float", "tensor"])
def test_opcheck(scalar):
    targets, sources = mixture()
    torch.library.opcheck(raw, (targets[:30], sources[:30], scalar, 0.9 if scalar is None else 1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_fullgraph(backend):
    def step(targets, sources, m):
        doubled = [2 * s for s in sources]
        ema_update_(targets, doubled, m)
        return [t + 1 for t in targets]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for m in (0.9, torch.tensor(0.8)):
        targets, sources = (
            tensors(SHAPES[-3:], FLOATS[:3]),
            tensors(SHAPES[-3:], [torch.float32] * 3, 1),
        )
        eager = [t.clone() for t in targets]
        with fastssl.use_backend(backend):
            expected, got = step(eager, sources, m), compiled(targets, sources, m)
        for mine, right in zip([*targets, *got], [*eager, *expected], strict=True):
            torch.testing.assert_close(mine, right)


ONE, INT = torch.ones(3), torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("targets", "sources", "m", "error", "says"),
    [
        ([ONE], [], 0.5, ValueError, "1 targets need as many sources, not 0"),
        ([], [ONE], 0.5, ValueError, "0 targets need as many sources, not 1"),
        ([ONE, 2.0], [ONE, ONE], 0.5, TypeError, r"targets\[1\] must be a tensor, not float"),
        ([None], [ONE], 0.5, TypeError, r"targets\[0\] must be a tensor, not NoneType"),
        (
            [ONE] * 2,
            [ONE, ONE[:2]],
            0.5,
            ValueError,
            r"sources\[1\] .* shape of targets\[1\], \[3\]",
        ),
        ([ONE], [ONE.to("meta")], 0.5, ValueError, r"sources\[0\] .* targets\[0\], cpu, not meta"),
        ([ONE, INT], [ONE, ONE], 0.5, TypeError, r"targets\[1\] and sources\[1\] must be"),
        ([ONE], [INT], 0.5, TypeError, r"sources\[0\] must be float32, bfloat16"),
        ([INT], [INT.int()], 0.5, TypeError, "not torch.int64 and torch.int32"),
        ([ONE.cfloat()], [ONE.cfloat()], 0.5, TypeError, "not torch.complex64"),
        ([ONE], [ONE], 1.5, ValueError, r"momentum must lie in \[0, 1\], not 1.5"),
        ([ONE], [ONE], -0.1, ValueError, "not -0.1"),
        ([ONE], [ONE], NAN, ValueError, "not nan"),
        ([ONE], [ONE], ONE, ValueError, r"not torch.float32 of shape \[3\]"),
        ([ONE], [ONE], INT[0], ValueError, "0-dim floating-point tensor, not torch.int64"),
        ([ONE], [ONE], ONE[0].to("meta"), ValueError, "targets' device, cpu, not meta"),
    ],
)
def test_errors_name_the_argument(backend, targets, sources, m, error, says):
    with fastssl.use_backend(backend), pytest.raises(error, match=says):
        ema_update_(targets, sources, m)
    assert (ONE == 1).all()


def test_the_raw_op_refuses_what_its_kernel_does_not_know():
    with pytest.raises(RuntimeError, match="dtypes of pair 0"):
        raw([ONE], [INT], None, 0.5)
    with pytest.raises(RuntimeError, match="tensors 0 differ in shape"):
        raw([ONE], [ONE[:2]], None, 0.5)
    with pytest.raises(RuntimeError, match="lists of tensors differ in length"):
        raw([ONE, ONE], [ONE], None, 0.5)
