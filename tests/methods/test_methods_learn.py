"""Each method learns digits: in seconds, its encoder beats the one it began with."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fastssl.data import build_recipe, load_data
from fastssl.evaluation import extract_features, knn_accuracy
from fastssl.methods import METHODS
from fastssl.nn import SmallCNN
from fastssl.training import TrainConfig, Trainer
from fastssl.training.ranks import Ranks
from fastssl.training.run import build_method


def accuracy(encoder, data, recipe):
    """Of kNN on the test images, 0 to 1."""
    train, test = (
        extract_features(encoder, split[torch.arange(len(split))], transform=recipe.normalize)
        for split in (data.train, data.test)
    )
    return knn_accuracy(train, data.train.labels, test, data.test.labels)


EPOCHS = {"swav": 25, "dino": 25, "deepcluster": 15}  # their steps take more time
EPOCHS |= dict.fromkeys(("simclr", "supcon", "end-to-end"), 20)  # and these learn sooner
EPOCHS |= {"vicreg": 25, "byol": 45}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_learns(name):
    data = load_data("digits")
    config = TrainConfig(
        method=name, epochs=EPOCHS.get(name, 40), batch_size=256, warmup_epochs=4, device="cpu"
    )
    torch.manual_seed(0)
    encoder = SmallCNN(1, width=8)
    method = build_method(config, data.train.shape, encoder, samples=len(data.train))
    recipe = replace(build_recipe("digits"), views=method.views)
    untrained = accuracy(copy.deepcopy(method.encoder), data, recipe)
    trainer = Trainer(method, data.train, recipe, config, Ranks(0, 1, torch.device("cpu")))
    for _ in trainer.steps():
        pass
    trained = accuracy(method.encoder, data, recipe)
    assert trained >= untrained + 0.05, f"kNN {untrained:.3f} before, {trained:.3f} after"
