"""Every method is trained by name, is resumed bit for bit, and has its authors' settings."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.cli.train import parse
from fastssl.data import TensorImages, build_recipe, load_data
from fastssl.errors import UserError
from fastssl.methods import METHODS
from fastssl.training import TrainConfig, Trainer, load_checkpoint, load_run, save_checkpoint
from fastssl.training.config import arguments_of
from fastssl.training.presets import PRESETS
from fastssl.training.ranks import Ranks
from fastssl.training.run import build_method

EVERY = pytest.mark.parametrize("name", METHODS)
SMALL = {"batch_size": 96, "chunk_size": 40, "epochs": 3, "head_hidden": 32, "head_out": 16}
OWN = {"queue_size": 150, "predictor_hidden": 32, "negatives": 50, "prototypes": 30}
OWN |= {"queue_epoch": 1}
TEACHERS = ("key_encoder", "teacher", "target_encoder")
MEMORIES = ("queue", "bank", "criterion", "centroids", "labels")


class TinyEncoder(nn.Module):
    """Fast, and with dropout: nothing random may go unrestored."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
        )

    def forward(self, x):
        return self.layers(x)


def own(name):
    return {key: value for key, value in OWN.items() if key in arguments_of(name)}


def trainer(name, *, images=None, **values):
    config = TrainConfig(method=name, device="cpu", **{**SMALL, **own(name), **values})
    images = images or load_data("digits").train
    torch.manual_seed(7)
    method = build_method(config, images.shape, TinyEncoder(), samples=len(images))
    return alone(method, images, config)


def alone(method, images, config):
    recipe = replace(build_recipe("digits"), views=method.views)
    return Trainer(method, images, recipe, config, Ranks(0, 1, torch.device("cpu")))


def few_digits():
    data = load_data("digits").train
    rows = torch.arange(200)
    return TensorImages(data[rows], data.labels[rows])


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@EVERY
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    images = few_digits()
    whole = trainer(name, images=images, autocast="bf16")
    losses = [result.loss for result in whole.steps()]
    assert len(losses) == 6

    first = trainer(name, images=images, autocast="bf16")
    for result in first.steps():
        if result.step == 3:
            save_checkpoint(first.state_dict(), tmp_path / "checkpoint.pt")
            break
    second = trainer(name, images=images, autocast="bf16")
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert [result.loss for result in second.steps()] == losses[3:]
    assert same(whole.state_dict(), second.state_dict())


@EVERY
def test_memories_and_momentum_encoders_move_once_a_step(name):
    train = trainer(name, images=few_digits(), epochs=1)
    before = copy.deepcopy(train.method.state_dict())
    for result in train.steps():
        after = train.method.state_dict()
        for key, value in after.items():
            if key.startswith("queue") and key.endswith("position"):
                assert value == result.step * 96 % 150
            if key.startswith("bank"):
                assert (value != before[key]).any(dim=1).sum() == result.step * 96
            if key.startswith(TEACHERS) and key.endswith("0.layers.0.weight"):
                assert not torch.equal(value, before[key])
                assert not torch.equal(value, after["encoder.layers.0.weight"])


@EVERY
def test_memories_are_no_part_of_what_is_embedded(name):
    """Or every chunk would copy them, and DistributedDataParallel send them around."""
    train = trainer(name, images=few_digits())
    embedded = {id(tensor) for tensor in (*train.embed.parameters(), *train.embed.buffers())}
    for key, parameter in train.method.named_parameters():
        apart = key.startswith((*TEACHERS, *train.method.in_loss))
        assert (id(parameter) in embedded) == (not apart), key
    for key, buffer in train.method.named_buffers():
        assert (id(buffer) in embedded) == (not key.startswith((*MEMORIES, *TEACHERS))), key


@EVERY
def test_by_name_from_the_command_line(name, tmp_path, capsys):
    options = "--epochs 1 --batch-size 512 --chunk-size 200 --head-hidden 32 --head-out 16"
    flags = f"--device cpu --no-evaluate --run-dir {tmp_path / 'run'}"
    flags += "" if name == "npid" else " --no-pictures"  # with one view, pictures differ
    flags += " --views digits-crops" if METHODS[name].more_views else ""
    assert main(["train", name, *options.split(), *flags.split()]) == 0, capsys.readouterr().err
    run = load_run(tmp_path / "run", device="cpu")
    assert run.config.method == name
    assert run.config == TrainConfig.model_validate(run.config.model_dump())
    assert (tmp_path / "run" / "views.png").is_file() == (name == "npid")


def test_supcon_needs_labels():
    unlabelled = TensorImages(load_data("digits").train[torch.arange(200)])
    with pytest.raises(UserError, match="supcon needs labels, which these images do not have"):
        trainer("supcon", images=unlabelled)
    trainer("npid", images=unlabelled)


def test_compile_includes_the_key_encoder(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    method = trainer("moco", compile=True).method
    assert compiled == [method.encoder, method.key_encoder.module]


# Presets


@EVERY
def test_the_default_is_the_recipe_for_digits(name):
    config = TrainConfig(method=name)
    assert config == parse([name])[0]
    assert config.preset == "digits"
    for key, value in PRESETS[name]["digits"].items():
        assert getattr(config, key) == value


def test_what_is_given_counts_more_than_a_file_and_that_more_than_a_preset(tmp_path):
    (tmp_path / "c.yaml").write_text("preset: v1\nlr: 0.5\nqueue_size: 9\n")
    given = ["moco", "--config", str(tmp_path / "c.yaml"), "--queue-size", "7"]
    config, _ = parse(given)
    assert (config.queue_size, config.lr, config.temperature) == (7, 0.5, 0.07)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["moco", "--preset", "v9"],
            "no preset of moco 'v9'; there are: digits, v1, v2",
        ),
        (["simclr", "--queue-size", "9"], "queue_size is no setting of simclr"),
        (["moco", "--negatives", "9"], "negatives is no setting of moco"),
        (["moco", "--queue-size", "0"], "queue_size: Input should be greater than 0"),
        (["moco", "--key-momentum", "1.5"], "key_momentum: Input should be less than or equal"),
        (["moco-v3", "--freeze-patch-embedding"], "this encoder has no patch_embed"),
        (
            ["simclr", "--views", "digits-crops"],
            "these views are 6 of an image, the method takes 2",
        ),
        (["deepcluster", "--prototypes", "2000"], "1438 images do not make 2000 clusters"),
        (
            ["moco", "--bn-splits", "8", "--chunk-size", "300"],
            "1024 images a rank in chunks of 300",
        ),
        (["moco", "--bn-splits", "7"], "bn_splits 7 must divide every chunk: 1024 images"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", [(m, p) for m in PRESETS for p in PRESETS[m]], ids="-".join)
def test_every_preset_takes_a_step(name):
    """With a small encoder and small heads on digits; all else is the preset's."""
    method, preset = name
    images = few_digits()

    class Patches(TinyEncoder):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Identity()

    widths = {"head_hidden", "predictor_hidden", "prototypes"} & PRESETS[method][preset].keys()
    small = {"batch_size": 64, "epochs": 1, "views": "digits", "device": "cpu"}
    small |= dict.fromkeys(widths, 64)
    config = TrainConfig(method=method, preset=preset, **small)
    built = build_method(config, images.shape, Patches(), samples=len(images))
    train = alone(built, images, config)
    assert all(torch.tensor(result.loss).isfinite() for result in train.steps())


OFFICIAL = {  # what the papers and their code say
    ("moco", "v1"): dict(queue_size=65_536, key_momentum=0.999, temperature=0.07, head="linear"),
    ("moco", "v2"): dict(queue_size=65_536, key_momentum=0.999, temperature=0.2, head="mlp"),
    ("moco", "cifar10"): dict(queue_size=4096, key_momentum=0.99, temperature=0.1, bn_splits=8),
    ("moco-v3", "resnet50"): dict(batch_size=4096, temperature=1.0, key_momentum=0.99, lr=0.6),
    ("moco-v3", "vit-small"): dict(temperature=0.2, optimizer="adamw", freeze_patch_embedding=True),
    ("npid", "imagenet"): dict(temperature=0.07, negatives=4096, bank_momentum=0.5, lr=0.03),
    ("nnclr", "imagenet"): dict(queue_size=98_304, temperature=0.1, batch_size=4096, head="v2"),
    ("supcon", "cifar10"): dict(temperature=0.1, batch_size=1024, lr=0.5, head="mlp"),
    ("swav", "imagenet"): dict(prototypes=3000, epsilon=0.05, lr=4.8, views="swav", epochs=800),
    ("swav", "imagenet-256"): dict(queue_size=3840, queue_epoch=15, lr=0.6, batch_size=256),
    ("dino", "vit-small"): dict(prototypes=65_536, key_momentum=0.996, teacher_temperature=0.04),
    ("dino", "resnet50"): dict(optimizer="sgd", lr=0.03, views="dino-resnet", head_out=256),
    ("deepcluster", "imagenet"): dict(prototypes=3000, clusterings=3, views="swav", lr=4.8),
    ("simclr", "v2"): dict(head="v2", temperature=0.1, batch_size=4096, lr=0.1, epochs=800),
    ("moco", "simclr-v2"): dict(head="v2", queue_size=65_536, key_momentum=0.999, lr=0.1),
    ("byol", "imagenet-300"): dict(lr=0.3, key_momentum=0.99, weight_decay=1e-6, views="byol"),
    ("byol", "imagenet-1000"): dict(lr=0.2, key_momentum=0.996, weight_decay=1.5e-6, head_out=256),
    ("simsiam", "imagenet"): dict(lr=0.05, batch_size=512, head_out=2048, predictor_hidden=512),
    ("barlow-twins", "imagenet"): dict(lr=0.2, lambd=0.0051, head_out=8192, batch_size=2048),
    ("vicreg", "imagenet"): dict(lr=0.2, invariance=25, variance=25, covariance=1, head_out=8192),
    ("simclr", "imagenet"): dict(temperature=0.1, batch_size=4096, lr=0.075, lr_scaling="sqrt"),
}


@pytest.mark.parametrize("name", OFFICIAL, ids="-".join)
def test_presets_are_the_authors(name):
    method, preset = name
    for key, value in OFFICIAL[name].items():
        assert PRESETS[method][preset][key] == value
