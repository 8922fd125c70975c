"""``fastssl.compat.info_nce_pytorch`` against info-nce-pytorch, and against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat import info_nce_pytorch as compat
from tests.compat.agreement import DTYPES, SHAPES, TEMPERATURES, agrees, peer, views

MODES = ["batch", "unpaired", "paired"]


def inputs(mode, n, d, dtype=torch.float32):
    """Query, positive key and negative keys, and the settings that go with them."""
    generator = torch.Generator().manual_seed(1)
    shape = {"batch": None, "unpaired": (n + 4, d), "paired": (n, 5, d)}[mode]
    if shape is None:
        return views(n, d, dtype), {}
    negatives = torch.randn(shape, generator=generator).to(dtype)
    return (*views(n, d, dtype), negatives), {"negative_mode": mode}


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_is_the_packages(mode, shape, temperature):
    package = peer("info_nce", "info-nce-pytorch")
    for dtype in DTYPES:
        tensors, settings = inputs(mode, *shape, dtype)
        for reduction in ("mean", "none"):
            settings["reduction"] = reduction
            mine = compat.InfoNCE(temperature, **settings)
            agrees(mine, package.InfoNCE(temperature, **settings), *tensors)


@pytest.mark.parametrize("mode", MODES)
def test_function_and_defaults_are_the_packages(mode):
    package = peer("info_nce", "info-nce-pytorch")
    tensors, settings = inputs(mode, 24, 16)
    agrees(
        lambda *x: compat.info_nce(*x, reduction="sum", **settings),
        lambda *x: package.info_nce(*x, reduction="sum", **settings),
        *tensors,
    )
    agrees(compat.InfoNCE(**settings), package.InfoNCE(**settings), *tensors)


@pytest.mark.parametrize("mode", MODES)
def test_formula(mode):
    def info_nce(query, key, negatives=None):
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        if negatives is None:
            return F.cross_entropy(query @ key.T / 0.1, torch.arange(len(query)))
        negatives = F.normalize(negatives, dim=-1).expand(len(query), -1, -1)
        positive = (query * key).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, (negatives @ query[:, :, None])[:, :, 0]], dim=1) / 0.1
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))

    tensors, settings = inputs(mode, 13, 7)
    agrees(compat.InfoNCE(**settings), info_nce, *tensors)
    agrees(lambda *x: compat.info_nce(*x, **settings), info_nce, *tensors)


def test_wrong_arguments_are_named():
    query, key = views(4, 3)
    with pytest.raises(ValueError, match="negative_keys must have 3 dimensions"):
        compat.info_nce(query, key, key, negative_mode="paired")
    with pytest.raises(ValueError, match='negative_mode must be "paired" or "unpaired"'):
        compat.info_nce(query, key, key, negative_mode="both")
    with pytest.raises(ValueError, match="reduction must be"):
        compat.InfoNCE(reduction="max")(query, key)
