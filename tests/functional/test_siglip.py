"""The sigmoid loss against open_clip's and against float64 on the same rounded inputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import siglip_loss
from tests.cases import KINDS, SHAPES, views
from tests.numerics import GRADIENT, LOSS, UNIT

BACKENDS = ["native", "reference"]  # Triton: tests/kernels/test_similarity_softplus_triton.py
# The paper's start, what SigLIP models learn, no bias, everything a pair, nothing a pair.
SCALARS = [(10.0, -10.0), (118.0, -12.9), (10.0, None), (1.0, 12.0), (20.0, -40.0)]


def features(kind, n, d, dtype=torch.float32):
    return tuple(F.normalize(z, dim=1).to(dtype) for z in views(kind, n, d))


def loss_and_gradients(x, y, scale, bias, function=siglip_loss):
    """The loss and its gradients for both features and both scalars."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    # Scalars in the precision of the truth, so that all see the same numbers.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scalars = [
        torch.tensor(v, dtype=torch.float32).to(wide).requires_grad_()
        for v in (scale, bias)
        if v is not None
    ]
    loss = function(x, y, scalars[0], logit_bias=scalars[1] if bias is not None else None)
    return loss.detach(), *torch.autograd.grad(loss, (x, y, *scalars))


def compare(x, y, scale, bias, function=siglip_loss):
    """Within the published bounds, beside what float32 cannot know: a logit is uncertain by its
    terms' roundings, and what is left of gradients that cancel by as much of their terms."""
    ours = loss_and_gradients(x, y, scale, bias, function)
    true = loss_and_gradients(x.double(), y.double(), scale, bias)
    logit = UNIT * (scale + abs(bias or 0.0))
    assert ours[0].dtype == torch.float32
    bound = LOSS * true[0] + 2 * logit * true[0].clamp(max=1) + 1e-37
    assert (ours[0].double() - true[0]).abs() <= bound
    terms = gradient_terms(x.double(), y.double(), scale, bias or 0.0)
    names = ("x", "y", "scale", "bias")  # without a bias, the last of names and terms is unused
    for name, mine, right, size in zip(names, ours[1:], true[1:], terms, strict=False):
        bound = GRADIENT[x.dtype] if name in "xy" else GRADIENT[torch.float32]
        error = (mine.double() - right).norm()
        floor = torch.finfo(mine.dtype).tiny * mine.numel() ** 0.5
        assert error <= bound * right.norm() + (UNIT + logit) * size + floor, name


def gradient_terms(x, y, scale, bias):
    """Sizes (‖·‖ over rows) of the terms that the gradients are sums of."""
    n = len(x)
    similarities = x @ y.T
    weights = torch.sigmoid(scale * similarities + bias) / n
    weights.diagonal().copy_(torch.sigmoid(-scale * similarities.diagonal() - bias) / n)
    size = similarities.abs() * weights
    return (
        scale * weights.sum(1).norm(),
        scale * weights.sum(0).norm(),
        size.sum(),
        weights.sum(),
    )


@pytest.mark.parametrize("scale_bias", SCALARS, ids=str)
@pytest.mark.parametrize("dtype", GRADIENT, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kind_of_features(backend, kind, dtype, scale_bias):
    with fastssl.use_backend(backend):
        for shape in SHAPES:
            compare(*features(kind, *shape, dtype), *scale_bias)


def test_is_the_textbook_formula():
    x, y = (z.double() for z in features("related", 13, 7))
    logits = 10.0 * x @ y.T - 8.0
    signs = 2 * torch.eye(13, dtype=torch.float64) - 1
    expected = -torch.log(torch.sigmoid(signs * logits)).sum() / 13
    torch.testing.assert_close(siglip_loss(x, y, 10.0, logit_bias=-8.0), expected)


@pytest.mark.parametrize("bias", [-10.0, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_open_clips(backend, bias):
    criterion = open_clip_losses().SigLipLoss()

    def theirs(x, y, scale, *, logit_bias):
        return criterion(x, y, scale, logit_bias)

    for shape in SHAPES:
        x, y = features("related", *shape)
        wide = (x.double(), y.double())
        with fastssl.use_backend(backend):
            mine = loss_and_gradients(x, y, 12.0, bias)
        for ours, peers in (
            (mine, loss_and_gradients(x, y, 12.0, bias, theirs)),
            (
                loss_and_gradients(*wide, 12.0, bias),
                loss_and_gradients(*wide, 12.0, bias, theirs),
            ),
        ):
            for a, b in zip(ours, peers, strict=True):
                torch.testing.assert_close(a, b)


def open_clip_losses():
    """open_clip's losses alone: its package needs a torchvision that goes with this torch."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip_torch is not installed")
    path = Path(package.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_and_tensors_agree():
    x, y = features("related", 9, 5)
    number = siglip_loss(x, y, 10, logit_bias=-10.0)
    assert torch.equal(
        siglip_loss(x, y, torch.tensor(10.0), logit_bias=torch.tensor(-10.0)), number
    )
    torch.testing.assert_close(siglip_loss(x, y, 10.0), siglip_loss(x, y, 10.0, logit_bias=0.0))


def test_gradcheck():
    x, y = (z.double().requires_grad_() for z in features("independent", 5, 4))
    s, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -2.0))
    assert torch.autograd.gradcheck(lambda *t: siglip_loss(*t[:3], logit_bias=t[3]), (x, y, s, b))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_visible(backend, bad):
    x, y = features("independent", 6, 4)
    y[3, 2] = bad
    x.requires_grad_()
    with fastssl.use_backend(backend):
        loss = siglip_loss(x, y, 10.0, logit_bias=-10.0)
        loss.backward()
    assert loss.isnan()
    assert x.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_loss(backend, dtype):
    x, y = features("related", 40, 16)
    with fastssl.use_backend(backend):
        plain = siglip_loss(x, y, 10.0, logit_bias=-10.0)
        with torch.autocast("cpu", dtype):
            assert torch.equal(siglip_loss(x, y, 10.0, logit_bias=-10.0), plain)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(text_features=torch.randn(3, 5)), ValueError, "one shape"),
        (dict(text_features=torch.randn(4, 5).bfloat16()), TypeError, "one dtype"),
        (dict(image_features=torch.ones(4, 5, dtype=torch.long)), TypeError, "image_features"),
        (dict(logit_scale=torch.ones(2)), ValueError, "logit_scale must be a float or a 0-dim"),
        (dict(logit_bias=torch.ones(1)), ValueError, "logit_bias must be a float or a 0-dim"),
        (dict(logit_scale="10"), TypeError, "logit_scale must be a float"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    x, y = torch.randn(2, 4, 5)
    arguments = dict(image_features=x, text_features=y, logit_scale=10.0) | change
    with pytest.raises(error, match=says):
        siglip_loss(**arguments)
