"""CLIP's loss: both directions of one matrix."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastssl
from fastssl.functional import clip_loss
from tests.cases import KINDS, SHAPES, views
from tests.functional.comparison import BACKENDS, agree, compare, compiles, gradcheck, peer, unit
from tests.numerics import LOSS


def loss_of(image, text, scale):
    return clip_loss(image, text, scale)


def plain(dot, image, text, scale):
    logits = scale * dot(image, text)
    itself = torch.eye(len(image), dtype=torch.bool)
    negatives, positive = logits.masked_fill(itself, float("-inf")), logits.diagonal()
    images = torch.logaddexp(positive * 0, negatives.logsumexp(1) - positive)
    texts = torch.logaddexp(positive * 0, negatives.T.logsumexp(1) - positive)
    return (images + texts).mean() / 2


def features(kind, n, d, dtype=torch.float32):
    return [unit(z).to(dtype) for z in views(kind, n, d)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_embedding(kind, dtype):
    for i, (n, d) in enumerate(SHAPES[1:]):
        scale = (1.0, 14.3, 100.0)[i % 3]
        compare(loss_of, plain, features(kind, n, d, dtype), scale, normalize=False)


@pytest.mark.parametrize("scale", [0.5, 14.3, 100.0, 200.0, -3.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, scale):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        pair = features("related", 61, 33, dtype)
        compare(loss_of, plain, pair, scale, backend, normalize=False)
    longer = [4 * z for z in features("related", 40, 16)]
    compare(loss_of, plain, longer, scale / 20, backend, normalize=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_pair_and_collapse(backend):
    with fastssl.use_backend(backend):
        image, text = (z.requires_grad_() for z in features("related", 1, 6))
        loss = clip_loss(image, text, 100.0)
        assert loss == 0
        assert not any(d.any() for d in torch.autograd.grad(loss, (image, text)))
        row = F.normalize(torch.randn(1, 9), dim=1).repeat(20, 1)
        assert abs(clip_loss(row, row.clone(), 100.0).item() - math.log(20)) < 3 * LOSS


def test_zero_rows():
    image, text = features("related", 6, 5)
    image[2], text[3] = 0, 0
    leaves = [z.requires_grad_() for z in (image, text)]
    assert all(
        torch.isfinite(d).all() for d in torch.autograd.grad(clip_loss(*leaves, 10.0), leaves)
    )


def test_the_scale_may_be_a_number():
    image, text = features("related", 12, 8)
    assert torch.equal(clip_loss(image, text, 14.0), clip_loss(image, text, torch.tensor(14.0)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_changes_nothing(backend):
    image, text = features("related", 12, 8)
    bias = torch.tensor(-10.0, requires_grad=True)
    with fastssl.use_backend(backend):
        loss = clip_loss(image, text, 14.0, logit_bias=bias)
        assert torch.equal(loss, clip_loss(image, text, 14.0, logit_bias=3.0))
        assert torch.equal(loss, clip_loss(image, text, 14.0))
    assert torch.autograd.grad(loss, bias)[0] == 0
    assert clip_loss(image, text, 14.0, logit_bias=float("nan")).isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_visible(backend):
    for place in range(2):
        pair = features("related", 6, 5)
        pair[place][3, 1] = float("nan")
        with fastssl.use_backend(backend):
            assert clip_loss(*pair, 10.0).isnan()
            assert clip_loss(*features("related", 6, 5), torch.tensor(float("nan"))).isnan()


def test_gradcheck():
    gradcheck(loss_of, *features("independent", 5, 4), t=3.0)


def test_compiles_to_one_graph():
    compiles(loss_of, *features("related", 6, 5), t=8.0)
    compiles(lambda a, b, s: clip_loss(a, b, s, logit_bias=s), *features("related", 6, 5), t=8.0)


def test_is_open_clips():
    theirs = peer("open_clip.loss", "open_clip_torch").ClipLoss()
    scale, bias = torch.tensor(20.0), torch.tensor(-10.0)
    image, text = features("related", 13, 7)
    agree(clip_loss, theirs, image, text, scale)
    agree(lambda a, b, s, c: clip_loss(a, b, s, logit_bias=c), theirs, image, text, scale, bias)


def test_dtypes_and_module():
    for dtype, gives in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert clip_loss(*features("related", 5, 4, dtype), 9.0).dtype == gives
    image, text = features("related", 5, 4)
    loss = clip_loss(image, text, 9.0)
    assert torch.equal(fastssl.CLIPLoss()(image, text, 9.0, -10.0), loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip_loss(image, text, 9.0), loss)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(text_features=torch.ones(3, 5)), ValueError, "image_features and text_features must"),
        (dict(text_features=torch.ones(4, 5).double()), TypeError, "one dtype"),
        (dict(image_features=torch.ones(4, 5).int()), TypeError, "image_features must be a float"),
        (dict(logit_scale=torch.ones(2)), ValueError, "logit_scale must be a float or a 0-dim"),
        (dict(logit_scale=None), TypeError, "logit_scale must be .* not NoneType"),
        (dict(logit_scale=torch.ones((), device="meta")), ValueError, "logit_scale must be on"),
        (dict(logit_bias=torch.ones(4)), ValueError, "logit_bias"),
        (dict(logit_bias="zero"), TypeError, "logit_bias"),
    ],
)
def test_errors_name_the_argument(change, error, says):
    good = dict(image_features=torch.ones(4, 5), text_features=torch.ones(4, 5), logit_scale=1.0)
    with pytest.raises(error, match=says):
        clip_loss(**(good | change))
