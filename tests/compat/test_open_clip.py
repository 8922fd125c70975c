"""``fastssl.compat.open_clip`` against open_clip, and against the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import open_clip as compat
from tests.compat.agreement import DTYPES, SHAPES, agrees, peer, views

SCALES = [1.0, 14.3, 100.0]


def open_clip():
    return peer("open_clip.loss", "open_clip_torch")


def features(n, d, dtype=torch.float32):
    """Normalised, as open_clip's models give them, and then rounded."""
    return tuple(F.normalize(x, dim=1).to(dtype) for x in views(n, d))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_is_open_clips(name, shape, scale):
    mine, theirs = getattr(compat, name)(), getattr(open_clip(), name)()
    for dtype in DTYPES:
        x, y = features(*shape, dtype)
        agrees(mine, theirs, x, y, torch.tensor(scale), torch.tensor(-3.0))


def test_without_bias_and_as_a_dict():
    x, y = features(24, 16)
    scale = torch.tensor(14.3)
    agrees(compat.ClipLoss(), open_clip().ClipLoss(), x, y, scale)
    settings = {"logit_bias": None, "output_dict": True}
    for name in ("ClipLoss", "SigLipLoss"):
        mine, theirs = getattr(compat, name)(), getattr(open_clip(), name)()
        agrees(
            lambda *t, loss=mine: loss(*t, **settings)["contrastive_loss"],
            lambda *t, loss=theirs: loss(*t, **settings)["contrastive_loss"],
            x,
            y,
            scale,
        )


def test_scale_and_bias_of_one_entry():
    """As models have them that are sharded by FSDP."""
    x, y = features(24, 16)
    one = torch.tensor([14.3])
    for name in ("ClipLoss", "SigLipLoss"):
        agrees(getattr(compat, name)(), getattr(open_clip(), name)(), x, y, one, -0.2 * one)


def test_formulas():
    x, y = features(13, 7)
    scale, bias = torch.tensor(14.3), torch.tensor(-3.0)

    def clip(image, text, scale, bias):
        logits = scale * image @ text.T + bias
        target = torch.arange(13)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def siglip(image, text, scale, bias):
        sign = 2 * torch.eye(13, dtype=image.dtype) - 1
        return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / 13

    agrees(compat.ClipLoss(), clip, x, y, scale, bias)
    agrees(compat.SigLipLoss(), siglip, x, y, scale, bias)
    agrees(compat.SigLipLoss(chunk_size=4), siglip, x, y, scale, bias)


def test_wrong_arguments_are_named():
    with pytest.raises(NotImplementedError, match="use_horovod"):
        compat.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl must be"):
        compat.SigLipLoss(dist_impl="star")
