"""similarity_lse with pairs that are rows of their own and no columns."""

from __future__ import annotations

import itertools

import pytest
import torch

import fastssl
from fastssl.ops import similarity_lse
from tests.numerics import GRADIENT, relative

raw = torch.ops.fastssl
FORMS = {
    "cosines": dict(normalize=True),
    "products": dict(),
    "excluded": dict(normalize=True, self_offset=3),
}
NEEDS = [  # of x, y, pairs and scale
    needs for needs in itertools.product([True, False], repeat=4) if any(needs)
]


def inputs(dtype=torch.float32, m=13, k=40, d=19):
    generator = torch.Generator().manual_seed(3)
    x, y, pairs = (torch.randn(n, d, generator=generator) / 2 for n in (m, k, m))
    pairs[1], x[2] = 0, 0
    upstream = torch.randn(2, m, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (x, y, pairs)], upstream


def run(backend, tensors, scale, needs, upstream, **options):
    leaves = [t.detach().requires_grad_(need) for t, need in zip((*tensors, scale), needs)]  # noqa: B905
    x, y, pairs, scale = leaves
    with fastssl.use_backend(backend):
        lse, pair = similarity_lse(x, y, scale, pairs=pairs, **options)
    outputs = [one for one in (lse, pair) if one.requires_grad]
    used = [d for one, d in zip((lse, pair), upstream, strict=True) if one.requires_grad]
    wanted = [t for t in leaves if t.requires_grad]
    return (lse, pair), torch.autograd.grad(outputs, wanted, used, materialize_grads=True)


@pytest.mark.parametrize("scale", [5.0, 150.0])
@pytest.mark.parametrize("dtype", [*GRADIENT, torch.float64], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_is_the_reference(form, dtype, scale):
    tensors, upstream = inputs(dtype)
    wide = [t.double() for t in tensors]
    s = torch.tensor(scale, dtype=torch.float64)
    right, d_right = run("reference", wide, s, (True,) * 4, upstream, **FORMS[form])
    for needs in NEEDS:
        mine, d_mine = run("native", tensors, s, needs, upstream, **FORMS[form])
        for a, b in zip(mine, right, strict=True):
            assert relative(a, b) < 1e-6
        torch.testing.assert_close(mine[1], right[1], rtol=1e-12, atol=1e-12)  # sums of float64
        wanted = [d for d, need in zip(d_right, needs, strict=True) if need]
        for a, b in zip(d_mine, wanted, strict=True):
            assert relative(a, b) < GRADIENT.get(dtype, 1e-11) * 1.5


def test_as_columns_they_are_the_same():
    (x, y, pairs), upstream = inputs()
    s = torch.tensor(4.0)
    options = dict(normalize=True)
    (lse, pair), (d_x, d_pairs) = run(
        "native", (x, y, pairs), s, (True, False, True, False), upstream, **options
    )
    x2, p2 = (t.clone().requires_grad_() for t in (x, pairs))
    other = similarity_lse(x2, p2, s, pair_offset=0, **options)[1]
    lse2 = similarity_lse(x2, y, s, **options)[0]
    torch.testing.assert_close(pair, other)
    torch.testing.assert_close(lse, lse2)
    right = torch.autograd.grad((lse2, other), (x2, p2), tuple(upstream))
    for a, b in zip((d_x, d_pairs), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_rows_may_be_their_own_columns():
    (x, _, pairs), upstream = inputs()
    results = []
    for backend, wide in (("native", torch.float32), ("reference", torch.float64)):
        leaves = [t.to(wide).requires_grad_() for t in (x, pairs)]
        with fastssl.use_backend(backend):
            sums = similarity_lse(
                leaves[0], None, 3.0, pairs=leaves[1], normalize=True, self_offset=0
            )
        results.append((*sums, *torch.autograd.grad(sums, leaves, tuple(upstream))))
    for a, b in zip(*results, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_not_finite_shows(normalize):
    for bad in (float("nan"), float("inf")):
        (x, y, pairs), _ = inputs()
        pairs[4, 2] = bad
        lse, pair = similarity_lse(x, y, 3.0, pairs=pairs, normalize=normalize)
        assert pair.isnan().nonzero().tolist() == [[4]]
        assert lse.isfinite().all()


def test_a_queue_may_move_on_before_the_backward():
    (x, y, pairs), _ = inputs()
    results = []
    for overwrite in (False, True):
        rows, queue = x.clone().requires_grad_(), y.clone()
        lse, pair = similarity_lse(rows, queue, 5.0, normalize=True, pairs=pairs)
        if overwrite:
            queue.fill_(float("nan"))
        results.append(torch.autograd.grad((lse - pair).sum(), rows)[0])
    assert torch.equal(*results)


def test_strides_do_not_matter():
    (x, y, pairs), upstream = inputs()
    results = []
    for turned in (False, True):
        p = pairs.T.contiguous().T if turned else pairs
        results.append(run("native", (x, y, p), torch.tensor(3.0), (True,) * 4, upstream)[1])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [None, torch.tensor(0.7)], ids=["number", "tensor"])
def test_opcheck(scale):
    (x, y, pairs), upstream = inputs()
    for mean in (False, True):
        options = (2.0, True, None, None, False, False, mean)
        torch.library.opcheck(raw.similarity_lse_fwd, (x, y, scale, *options, pairs))
    mean = torch.randn_like(x)
    for own, means in ((pairs, mean), (None, mean), (pairs, None)):
        arguments = (*upstream, x, own, scale, means, 2.0, True)
        needs = (True, own is not None, scale is not None)
        torch.library.opcheck(raw.similarity_lse_pairs_bwd, (*arguments, *needs))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(pairs=torch.ones(3, 4).half()), TypeError, "pairs must have the dtype of x"),
        (dict(pairs=torch.ones(2, 4)), ValueError, r"shape of x, \[3, 4\], not \[2, 4\]"),
        (dict(pairs=torch.ones(3, 5)), ValueError, "pairs must have the width of x"),
        (dict(pairs=[1.0]), TypeError, "pairs must be a float32"),
        (dict(pair_offset=1), ValueError, "pair_offset must be None, not 1"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    arguments = dict(x=torch.randn(3, 4), y=torch.randn(5, 4), pairs=torch.randn(3, 4))
    with pytest.raises(error, match=says):
        similarity_lse(**(arguments | change))
