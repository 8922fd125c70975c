"""swav_loss: swapped prediction, as its authors' code has it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import swav_loss
from tests.functional.comparison import BACKENDS, agree, peer
from tests.numerics import GRADIENT, LOSS


def crops(count, n, k, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, k, generator=generator)
    views = [shared + torch.randn(n, k, generator=generator) for _ in range(count)]
    return [(0.3 * v).to(dtype).requires_grad_() for v in views]


def codes(scores, epsilon, iterations):
    """SwAV's loop in logarithms; what cancels in it left out."""
    q = scores.double() / epsilon
    for _ in range(iterations):
        q = q - q.logsumexp(0)
        q = q - q.logsumexp(1, keepdim=True)
    return q.exp()


def formula(scores, assign=(0, 1), queue_scores=None, temperature=0.1, epsilon=0.05, iterations=3):
    losses = []
    for place, i in enumerate(assign):
        seen = scores[i].detach()
        if queue_scores is not None:
            seen = torch.cat([queue_scores[place], seen])
        q = codes(seen, epsilon, iterations)[-len(scores[i]) :]
        for v, s in enumerate(scores):
            if v != i:
                losses.append(-(q * F.log_softmax(s / temperature, dim=1)).sum(1).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_formula(backend, dtype):
    for count, n, k, options in (
        (2, 5, 7, {}),
        (4, 33, 130, dict(assign=(0, 1), temperature=0.2, epsilon=0.03, iterations=5)),
        (3, 9, 1030, dict(assign=(2,), iterations=1)),
        (5, 16, 40, dict(assign=(0, 1, 3), queue_scores=[x.detach() for x in crops(3, 21, 40)])),
    ):
        if "queue_scores" in options:
            options["queue_scores"] = [x.to(dtype) for x in options["queue_scores"]]
        scores = crops(count, n, k, dtype)
        with fastssl.use_backend(backend):
            loss = swav_loss(scores, **options)
            gradients = torch.autograd.grad(loss, scores, allow_unused=True)
        wide = [s.detach().double().requires_grad_() for s in scores]
        right = formula(wide, **options)
        d_right = torch.autograd.grad(right, wide, allow_unused=True)
        assert loss.dtype == torch.float32
        assert abs(loss.item() - right.item()) <= LOSS * right.item()
        for mine, d in zip(gradients, d_right, strict=True):
            if d is None:  # the only crop to assign predicts nobody
                assert mine.norm() == 0
            else:
                assert (mine.double() - d).norm() <= GRADIENT[dtype] * d.norm()


def test_is_lightlys():
    loss = peer("lightly.loss", "lightly").SwaVLoss()
    high, low = crops(2, 12, 20), crops(3, 12, 20, seed=1)
    queue = [x.detach().double() for x in crops(2, 30, 20, seed=2)]
    agree(lambda *s: swav_loss(s), lambda *s: loss(list(s[:2]), list(s[2:]))[0], *high, *low)
    agree(
        lambda *s: swav_loss(s, queue_scores=queue),
        lambda *s: loss(list(s[:2]), list(s[2:]), queue)[0], *high, *low,
    )  # fmt: skip


def test_wide_scores_stay_finite():
    """Where the authors' code overflows: scores that are no cosines."""
    scores = [200 * s.detach() for s in crops(3, 10, 50)]
    right = formula([s.double() for s in scores])
    assert abs(swav_loss(scores).item() - right.item()) <= 1e-5 * right.item()


def test_one_tensor_and_the_module():
    scores = crops(4, 6, 10)
    loss = swav_loss(scores, assign=(0, 1))
    stacked = torch.stack(scores).detach().requires_grad_()
    module = fastssl.SwAVLoss()
    assert torch.equal(module(stacked), loss)
    [whole] = torch.autograd.grad(module(stacked), stacked)
    assert torch.equal(whole, torch.stack(torch.autograd.grad(loss, scores)))
    queue = [torch.randn(5, 10) for _ in range(2)]
    options = dict(temperature=0.2, epsilon=0.1, iterations=2)
    assert torch.equal(
        fastssl.SwAVLoss(**options, assign=[1, 2])(scores, queue),
        swav_loss(scores, assign=(1, 2), queue_scores=queue, **options),
    )


def test_compile_fullgraph():
    scores = crops(3, 6, 10)
    traced = torch.compile(swav_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(scores), swav_loss(scores))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(scores=[torch.ones(3, 4)]), ValueError, "scores must hold at least two crops"),
        (dict(scores=[]), ValueError, "scores must hold at least one tensor"),
        (dict(scores=[torch.ones(3, 4), torch.ones(2, 4)]), ValueError, r"scores\[1\] must have"),
        (dict(scores=[torch.ones(3, 4), torch.ones(3, 4).half()]), TypeError, "one dtype"),
        (dict(assign=(2,)), ValueError, r"assign must name crops 0 to 1, not \(2,\)"),
        (dict(assign=()), ValueError, "assign must name crops"),
        (dict(queue_scores=[torch.ones(5, 4)]), ValueError, "a tensor for each of the 2 crops"),
        (dict(queue_scores=[torch.ones(5, 3)] * 2), ValueError, r"queue_scores\[0\] must have"),
        (dict(temperature=0.0), ValueError, "temperature must be positive"),
        (dict(temperature="1"), TypeError, "temperature must be a float"),
        (dict(epsilon=-1.0), ValueError, "epsilon must be positive"),
        (dict(iterations=0), ValueError, "iterations must be at least 1"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    with pytest.raises(error, match=says):
        swav_loss(**(dict(scores=[torch.ones(3, 4)] * 2) | change))
