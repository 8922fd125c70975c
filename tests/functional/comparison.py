"""A loss beside a plain float64 formula that writes the whole matrix, on the same rounded inputs.

A plain formula is ``plain(dot, *tensors, temperature)``, rows as ``reduction="none"`` gives them,
and takes every similarity from ``dot(x, y)``, so that the comparison can shake them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import fastssl
from bench.harness import Skip
from bench.peers import _peer
from tests.numerics import GRADIENT, LOSS, UNIT

BACKENDS = ["native", "reference"]  # Triton: tests/kernels
ROW = 5e-6  # of a single row's loss, or a few rows'; LOSS is of the mean over many
UNDERFLOW = 1e-37


def unit(x: Tensor) -> Tensor:
    """Directions of the vectors [..., D]; zero where there is none."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm < 1e-12, 0.0, x / torch.where(norm < 1e-12, 1.0, norm))


class Dot:
    """All products of rows, [..., A, D] and [..., B, D] to [..., A, B].

    Args:
        noise: shakes each by up to this much of the lengths of both rows.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.generator = noise, torch.Generator().manual_seed(0)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        products = x @ y.mT
        lengths = x.norm(dim=-1)[..., None] * y.norm(dim=-1)[..., None, :]
        if self.noise:
            shake = torch.rand(products.shape, generator=self.generator) * 2 - 1
            products = products + self.noise * shake * lengths.detach()
        self.seen.append((products, lengths))
        return products

    def weights(self, rows: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all products seen."""
        products = [products for products, _ in self.seen]
        return torch.autograd.grad(rows, products, upstream, retain_graph=True)


def evaluate(
    loss: Callable[..., Tensor], tensors: Sequence[Tensor], t: float, upstream: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Rows, and the gradients of the tensors and the temperature."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    temperature = torch.tensor(t, dtype=torch.float32).to(wide).requires_grad_()
    rows = loss(*leaves, temperature)
    gradients = torch.autograd.grad(rows, (*leaves, temperature), random_upstream(rows, upstream))
    return rows.detach(), list(gradients)


def compare(
    loss: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    t: float,
    backend: str = "native",
    *,
    normalize: bool = True,
    difference: bool = False,
    upstream: Tensor | None = None,
) -> None:
    """Rows and gradients of ``loss(*tensors, temperature)`` within the published bounds.

    A gradient that vanishes because its terms cancel is held to roundings of the terms instead; in
    low precision it comes in parts, one for each use of ``dot``, and each of them is rounded.

    Args:
        normalize: ``plain`` is given unit rows, as the loss takes cosines.
        difference: the loss is a difference of two terms that know nothing of each other: held to
            what a rounding of the similarities changes, where that is more.
        upstream: gradient of the rows; None: random.
    """
    with fastssl.use_backend(backend):
        rows, gradients = evaluate(loss, tensors, t, upstream)
    wide = [x.double() for x in tensors]

    def formula(noise: float = 0.0) -> Callable[..., Tensor]:
        turn = unit if normalize else torch.Tensor.clone
        return lambda *leaves: plain(Dot(noise), *map(turn, leaves[:-1]), leaves[-1])

    true, d_true = evaluate(formula(), wide, t, upstream)
    _, d_shaken = evaluate(formula(UNIT), wide, t, upstream)
    sizes = term_sizes(plain, wide, t, normalize, upstream)
    parts = part_norms(plain, wide, t, normalize, upstream)

    slack = ROW * true.abs() + UNDERFLOW
    mean_slack = (LOSS if len(wide[0]) > 20 else ROW) * true.mean().abs() + UNDERFLOW
    if difference:
        longest = 1.0 if normalize else max(x.norm(dim=-1).max().item() for x in wide)
        logit = UNIT * longest**2 / t
        slack, mean_slack = slack + 2 * logit, mean_slack + logit
    assert rows.shape == true.shape
    excess = ((rows.double() - true).abs() / slack).max()
    assert excess <= 1, f"a row's loss: {excess:.2f} of its bound"
    excess = (rows.double().mean() - true.mean()).abs() / mean_slack
    assert excess <= 1, f"the mean loss: {excess:.2f} of its bound"

    for i, (mine, right, size) in enumerate(zip(gradients, d_true, sizes, strict=True)):
        assert torch.isfinite(mine).all()
        error = (mine.double() - right).norm()
        exact = GRADIENT[mine.dtype] * (right.norm() if mine.dtype.itemsize > 2 else parts[i])
        smallest = max(torch.finfo(mine.dtype).tiny, UNDERFLOW) * mine.numel() ** 0.5
        bound = torch.maximum(exact, 2e-7 * size) + smallest
        if difference:
            bound = bound + 3 * (d_shaken[i] - right).norm()
        assert error <= bound, f"gradient {i}: {error:.2e} above {bound:.2e}, of {right.norm():.2e}"


def term_sizes(
    plain: Callable[..., Tensor],
    wide: Sequence[Tensor],
    t: float,
    normalize: bool,
    upstream: Tensor | None,
) -> list[Tensor]:
    """Norms of the sums of terms without their signs, Σ_j |G_ij| ‖y_j‖ with G the gradient of the
    products, that each gradient consists of; the temperature's last."""
    turned = [unit(x) if normalize else x for x in wide]
    # Next to nothing instead of nothing: a length has no slope at zero.
    leaves = [torch.where(x == 0, 1e-99, x).requires_grad_() for x in turned]
    dot, temperature = Dot(), torch.tensor(t, dtype=torch.float32).double()
    rows = plain(dot, *leaves, temperature)
    weights = dot.weights(rows, random_upstream(rows, upstream))
    total = sum((g.abs() * size).sum() for g, (_, size) in zip(weights, dot.seen, strict=True))
    sizes = [d.norm(dim=-1) for d in torch.autograd.grad(total, leaves)]
    if normalize:
        lengths = [x.norm(dim=-1) for x in wide]
        sizes = [torch.where(n < 1e-12, 0.0, d / n) for d, n in zip(sizes, lengths, strict=True)]
    return [size.norm() for size in (*sizes, total.detach() / t)]


def part_norms(
    plain: Callable[..., Tensor],
    wide: Sequence[Tensor],
    t: float,
    normalize: bool,
    upstream: Tensor | None,
) -> list[Tensor]:
    """For each tensor the sum over all uses of ``dot`` of the norm of the gradient through it."""
    leaves = [x.detach().requires_grad_() for x in wide]
    turned = [unit(x) if normalize else x.clone() for x in leaves]
    dot, temperature = Dot(), torch.tensor(t, dtype=torch.float32).double()
    rows = plain(dot, *turned, temperature)
    norms = [torch.zeros((), dtype=torch.float64) for _ in leaves]
    for g, (products, _) in zip(
        dot.weights(rows, random_upstream(rows, upstream)), dot.seen, strict=True
    ):
        gradients = torch.autograd.grad(products, leaves, g, retain_graph=True, allow_unused=True)
        norms = [n if d is None else n + d.norm() for n, d in zip(norms, gradients, strict=True)]
    return norms


def random_upstream(rows: Tensor, upstream: Tensor | None) -> Tensor:
    if upstream is None:
        upstream = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    return upstream.to(rows.dtype)


def agree(mine: Callable[..., Tensor], theirs: Callable[..., Tensor], *tensors: Tensor) -> None:
    """Value and every gradient, in float64."""
    results = []
    for loss in (mine, theirs):
        leaves = [x.detach().double().requires_grad_() for x in tensors]
        value = loss(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def gradcheck(loss: Callable[..., Tensor], *tensors: Tensor, t: float = 0.3) -> None:
    """Gradients of the reference in float64 against differences, the temperature's too."""
    leaves = [x.detach().double().requires_grad_() for x in tensors]
    temperature = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    with fastssl.use_backend("reference"):
        assert torch.autograd.gradcheck(loss, (*leaves, temperature))


def compiles(loss: Callable[..., Tensor], *tensors: Tensor, t: float = 0.3) -> None:
    """One graph, with the same values and gradients."""
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        _flat(evaluate(loss, tensors, t, None)),
        _flat(evaluate(traced, tensors, t, None)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def _flat(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [result[0], *result[1]]


def peer(module: str, package: str):
    """A peer's module; skips the test where it is not installed."""
    try:
        return _peer(module, package)
    except Skip as reason:
        pytest.skip(str(reason))
