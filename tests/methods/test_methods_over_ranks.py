"""Several processes train as one with the whole batch, in chunks or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastssl.data import TensorImages, build_recipe, load_data
from fastssl.methods import METHODS
from fastssl.training import TrainConfig, Trainer
from fastssl.training.config import arguments_of
from fastssl.training.ranks import Ranks
from fastssl.training.run import build_method
from tests.distributed.launch import launch

# Those without random draws and, with these parts, without batch statistics.
EXACT = ("simclr", "moco", "supcon", "end-to-end", "swav", "dino", "deepcluster")
EXACT += ("barlow-twins", "vicreg")
# A queue of whole batches: which of a batch leave it first depends on the order of the ranks.
OWN = {"queue_size": 120, "predictor_hidden": 32, "negatives": 50, "prototypes": 30}
OWN |= {"queue_epoch": 1}


def train(name, rank, size, chunk, ring=False, steps=4):
    data = load_data("digits").train
    rows = torch.arange(60 * steps // 2)
    images = TensorImages(data[rows], data.labels[rows])
    config = TrainConfig(
        method=name,
        device="cpu",
        head="mlp",
        head_hidden=32,
        head_out=16,
        batch_size=60,
        chunk_size=chunk,
        ring=ring,
        epochs=2,
        warmup_epochs=0,
        optimizer="sgd",
        lr=0.05,
        **{key: value for key, value in OWN.items() if key in arguments_of(name)},
    )
    torch.manual_seed(7)
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    method = build_method(config, images.shape, encoder, samples=len(images))
    recipe = replace(build_recipe("digits"), views=method.views)
    trainer = Trainer(method, images, recipe, config, Ranks(rank, size, torch.device("cpu")))
    losses = [result.loss for result in trainer.steps()]
    return losses, method


def cases(alone, chunk, ring) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for name in METHODS:
        losses, method = train(name, rank, size, chunk, ring)
        if name in EXACT:
            expected, weights = alone[name]
            assert losses == pytest.approx(expected, rel=1e-5), name
            for key, value in method.named_parameters():
                difference = (value - weights[key]).norm() / weights[key].norm()
                assert difference < 1e-5, (name, key)
        for key, value in method.state_dict().items():
            if "running_" not in key:  # batch statistics are each rank's own
                theirs = value.clone(memory_format=torch.contiguous_format)
                dist.broadcast(theirs, 0)
                assert torch.equal(value, theirs), (name, key)


@pytest.fixture(scope="module")
def alone():
    """Losses and parameters of one process with the whole batch, by method."""
    trained = {name: train(name, 0, 1, None) for name in EXACT}
    return {
        name: (losses, {key: value.detach() for key, value in method.named_parameters()})
        for name, (losses, method) in trained.items()
    }


@pytest.mark.parametrize(("size", "chunk", "ring"), [(2, None, False), (3, 8, True)])
def test_ranks_train_as_one(alone, size, chunk, ring):
    launch(cases, size, alone, chunk, ring, seconds=110)
