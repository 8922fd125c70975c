"""What ``torch.compile`` is given in the augmentation's benchmark makes the reference's views; and
triton-augment is asked for what its signature has."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from bench import harness
from bench.harness import Case
from bench.ops import bench_augment
from bench.ops.augment_batched import view
from fastssl.augment import Column
from tests.compat.agreement import peer


@pytest.mark.parametrize(("side", "rows"), [(32, 24), (96, 8)])
def test_batched_views_are_the_reference(side, rows):
    case = Case(rows, side)
    made, (images,) = bench_augment.recipe(case), bench_augment.inputs(case)
    drawn = bench_augment.parameters(made, images)
    drawn[1][0, Column.TOP : Column.FLIP] = torch.tensor([3.0, 2.0, side, side])  # no resize
    drawn[1][0, Column.TOP : Column.LEFT + 1] *= side == 96
    for number, right in enumerate(bench_augment.reference(made, images, drawn)):
        mine = view(images, drawn[number], made, number, torch.float32)
        assert (mine - right).abs().max() <= 2e-5
    for column in (Column.FLIP, Column.GREY, Column.ORDER):
        assert len(drawn[0][:, column].unique()) > 1, "the case tries it"


class TritonFusedAugment:
    """triton-augment 0.3's signature; as much of it as crops and normalises."""

    def __init__(self, crop_size=None, horizontal_flip_p=0.0, degrees=0, translate=None, scale=None,
                 shear=None, interpolation="nearest", fill=0.0, brightness=0, contrast=0,
                 saturation=0, grayscale_p=0.0, mean=None, std=None, same_on_batch=False,
                 same_on_frame=True):  # fmt: skip
        self.crop, self.mean, self.std = crop_size, mean, std

    def __call__(self, image):
        assert image.is_floating_point()
        assert image.max() <= 1
        mean, std = (image.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return (image[:, :, : self.crop[0], : self.crop[1]] - mean) / std


def test_triton_augment(monkeypatch):
    module = ModuleType("triton_augment")
    module.TritonFusedAugment = TritonFusedAugment
    monkeypatch.setitem(sys.modules, "triton_augment", module)
    case = Case(32, 96)
    provider, tensors = bench_augment.BENCH.provider("triton-augment"), bench_augment.inputs(case)
    result = harness.step(provider.function(replace(case, device="cuda")), tensors)
    truth = bench_augment.answer(replace(case, device="cuda"), tensors)
    found = harness.check(case, result, truth, provider.differs)
    assert "wrong" not in found
    assert found["loss_error"] > 1e-4, "it is not the same"


def test_the_stand_in_takes_what_the_peer_takes():
    theirs = inspect.signature(peer("triton_augment", "triton-augment").TritonFusedAugment)
    assert list(theirs.parameters) == list(inspect.signature(TritonFusedAugment).parameters)
