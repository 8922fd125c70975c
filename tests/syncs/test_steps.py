"""No step of training waits for the device, of any method, as the trainer takes it."""

from __future__ import annotations

import pytest
import torch

from fastssl.data import TensorImages
from fastssl.methods import METHODS
from fastssl.training import TrainConfig, Trainer
from fastssl.training.config import arguments_of
from fastssl.training.ranks import Ranks
from fastssl.training.run import build_method
from fastssl.training.trainer import READ_EVERY
from tests.syncs.pretend import HostWaits, PretendCuda, on_device

OWN = {"queue_size": 20, "predictor_hidden": 8, "negatives": 12, "prototypes": 10}
OWN |= {"queue_epoch": 0, "freeze_epochs": 0}
B, SAMPLES = 8, 32


def trainer(name: str, **values) -> Trainer:
    own = {key: value for key, value in OWN.items() if key in arguments_of(name)}
    settings = {"batch_size": B, "chunk_size": None, "epochs": 2, "head_hidden": 8, "head_out": 8}
    settings |= {"encoder": "small-cnn", "device": "cuda", "resident": False} | own | values
    config = TrainConfig(method=name, **settings)
    pixels = torch.zeros(SAMPLES, 1, 16, 16, dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(SAMPLES) % 3)
    method = build_method(config, (1, 16, 16), samples=SAMPLES)

    def recipe(x, indices, seed):
        assert on_device(x)
        assert on_device(indices)
        large = [x.float() / 255 for _ in range(method.views)]
        return large + [x[:, :, :8, :8].float()] * (2 if method.more_views else 0)

    made = Trainer(method, images, recipe, config, Ranks(0, 1, torch.device("cuda")))
    made.step = 1  # no beginning of an epoch, where DeepCluster clusters
    made.method.train()
    return made


def take(train: Trainer, steps: int = 2) -> list:
    images = torch.zeros(B, 1, 16, 16, dtype=torch.uint8)
    return [train._train_step(torch.arange(B), images) for _ in range(steps)]


@pytest.fixture
def pretend():
    with PretendCuda() as device:
        yield device


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_training(name, pretend):
    train = trainer(name)
    with pretend.no_waiting() as ops:
        results = take(train)
        assert all(on_device(result.value) for result in results)
        assert "aten.convolution_backward" in ops
        with pytest.raises(HostWaits, match="_local_scalar_dense"):
            _ = results[0].loss


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
def test_optimizers(optimizer, pretend):
    train = trainer("simclr", optimizer=optimizer, channels_last=True)
    with pretend.no_waiting():
        take(train)


def test_losses_are_looked_at_once_in_a_while(pretend):
    train = trainer("simclr")
    take(train, READ_EVERY - 1)
    with pytest.raises(HostWaits, match="tolist"):
        take(train, 1)


def test_a_method_that_waits_is_found(pretend):
    train = trainer("simclr")
    train.method.after_step = lambda *z: print(z) if z[0].norm() > 0 else None
    with pytest.raises(HostWaits), pretend.no_waiting():
        take(train)
