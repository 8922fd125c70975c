"""Whole runs on digits, and what they leave behind."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from torch import nn

from fastssl.cli import main
from fastssl.data import load_data
from fastssl.errors import UserError
from fastssl.evaluation import evaluate_encoder
from fastssl.training import TrainConfig, load_run, train

SMALL = {"batch_size": 256, "epochs": 2, "head_hidden": 32, "head_out": 16, "warmup_epochs": 1}


class TinyEncoder(nn.Module):
    """Fast, and with dropout: nothing random may go unrestored."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
        )

    def forward(self, x):
        return self.layers(x)


def settings(tmp_path, **values):
    quiet = {"evaluate": False, "pictures": False, "device": "cpu", "run_dir": tmp_path / "run"}
    return TrainConfig(**{**SMALL, **quiet, **values})


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_everything_behind(tmp_path, capsys):
    arguments = "train simclr --data digits --batch-size 512 --chunk-size 200 --epochs 3"
    options = f"--head-hidden 64 --run-dir {tmp_path / 'run'} --device cpu --no-evaluate"
    status = main([*arguments.split(), *options.split()])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert f"run: {tmp_path / 'run'}" in out
    assert "images/s" in err
    assert "MiB" in err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "checkpoint.pt", "tensorboard"),
        *("loss.png", "views.png", "map.png", "neighbours.png"),
    }
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    run = load_run(tmp_path / "run", device="cpu")
    assert run.config.chunk_size == 200
    with torch.no_grad():
        h = run.encoder(run.recipe.normalize(run.data.test[torch.arange(3)] / 255))
    assert len(h) == 3
    assert main(["train", "simclr", "--run-dir", str(tmp_path / "run")]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_the_report_of_a_run(tmp_path, monkeypatch):
    quick = functools.partial(evaluate_encoder, labels_per_class=(1,), draws=1)
    monkeypatch.setattr("fastssl.training.run.evaluate_encoder", quick)
    monkeypatch.setattr("fastssl.training.run.JUDGED_IMAGES", 200)
    path, report = train(settings(tmp_path, epochs=1, evaluate=True), encoder=TinyEncoder())
    assert report is not None
    assert {"trained", "untrained", "raw pixels"} == set(report["results"]["kNN"])
    assert json.loads((path / "evaluation.json").read_text())["results"] == report["results"]


def test_chunks_change_little_where_only_the_head_has_batch_statistics(tmp_path):
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    losses = []
    for chunk in (None, 100):
        torch.manual_seed(0)
        for layer in encoder:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        config = settings(tmp_path, run_dir=tmp_path / str(chunk), chunk_size=chunk, epochs=1)
        losses.append(metrics(train(config, encoder=encoder)[0])[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"autocast": "bf16"},
        {"autocast": "fp16"},
        {"channels_last": True},
        {"optimizer": "sgd", "lr": 0.05, "lr_scaling": "sqrt", "head": "v2"},
        {"deterministic": True, "chunk_size": 64},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(tmp_path, options):
    path, _ = train(settings(tmp_path, epochs=1, **options), encoder=TinyEncoder())
    losses = [line["loss"] for line in metrics(path)]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("autocast", ["none", "bf16", "fp16"])
def test_a_gpu(tmp_path, autocast):
    config = settings(
        tmp_path, device="cuda", autocast=autocast, chunk_size=100, channels_last=True, epochs=4
    )
    path, _ = train(config, encoder=TinyEncoder())
    losses = [line["loss"] for line in metrics(path)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_compile(tmp_path):
    def losses(compiled):
        config = settings(tmp_path, run_dir=tmp_path / str(compiled), epochs=1, compile=compiled)
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Flatten())
        return [line["loss"] for line in metrics(train(config, encoder=encoder)[0])]

    assert losses(True) == pytest.approx(losses(False), rel=1e-4)


def test_the_same_seed_gives_the_same_run(tmp_path):
    def weights(name, seed):
        config = settings(tmp_path, run_dir=tmp_path / name, seed=seed, epochs=1)
        path, _ = train(config)
        return torch.load(path / "checkpoint.pt", weights_only=True)["method"]

    a, b, c = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="loss is nan at step"):
        train(settings(tmp_path, optimizer="sgd", lr=1e30, warmup_epochs=0, epochs=20))


def test_a_batch_larger_than_the_data(tmp_path):
    with pytest.raises(UserError, match="batch_size 4096 is larger than the data set: 1438"):
        train(settings(tmp_path, batch_size=4096))
    assert not (tmp_path / "run").exists()


def test_an_encoder_that_gives_no_rows(tmp_path):
    with pytest.raises(UserError, match=r"must map \[B, C, H, W\] to \[B, F\]"):
        train(settings(tmp_path), encoder=nn.Conv2d(1, 2, 3))
    with pytest.raises(UserError, match="the encoder fails on images"):
        train(settings(tmp_path), encoder=nn.Linear(3, 2))


def test_an_encoder_that_takes_no_small_crops(tmp_path):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    config = {"method": "swav", "views": "digits-crops"}
    with pytest.raises(UserError, match=r"the encoder fails on images of shape \(1, 8, 8\)"):
        train(settings(tmp_path, **config), encoder=encoder)
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_train_without_evaluation(tmp_path):
    from PIL import Image

    images = load_data("digits").train[torch.arange(40)]
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{i:03}.png")
    config = settings(
        tmp_path,
        data=f"folder:{tmp_path / 'images'}",
        image_size=16,
        batch_size=20,
        evaluate=True,
        pictures=True,
    )
    path, report = train(config)
    assert list(report["results"]) == ["RankMe, dimensions"]
    assert (path / "map.png").is_file()
