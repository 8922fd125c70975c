"""Settings from the command line and from YAML; every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastssl.cli import main
from fastssl.cli.train import parse
from fastssl.errors import UserError
from fastssl.training import TrainConfig
from fastssl.training.config import config_from, read_yaml, write_yaml


def test_nothing_given_is_the_default():
    assert parse([]) == (TrainConfig(), None)
    assert parse(["simclr"]) == (TrainConfig(), None)


def test_the_command_line_and_yaml_fill_the_same_settings(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("epochs: 7\nbatch-size: 64\nautocast: bf16\nrun_dir: here\n")
    config, _ = parse(["simclr", "--config", str(path), "--batch-size", "128", "--channels-last"])
    assert config == TrainConfig(
        epochs=7, batch_size=128, autocast="bf16", run_dir=Path("here"), channels_last=True
    )


def test_none_can_be_given():
    assert parse(["--chunk-size", "None"])[0].chunk_size is None


def test_a_config_survives_yaml(tmp_path):
    config = TrainConfig(chunk_size=3, run_dir=Path("a/b"), lr=0.5)
    write_yaml(config, tmp_path / "c.yaml")
    assert config_from(read_yaml(tmp_path / "c.yaml"), "c") == config
    assert set(yaml.safe_load((tmp_path / "c.yaml").read_text())) == set(TrainConfig.model_fields)


def test_the_environment_is_not_read(monkeypatch):
    for name in ("EPOCHS", "epochs", "SEED", "seed", "data"):
        monkeypatch.setenv(name, "3")
    assert parse([])[0] == TrainConfig()


def test_every_setting_is_explained():
    missing = [name for name, field in TrainConfig.model_fields.items() if not field.description]
    assert missing == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simclr", "--frobnicate", "1"], "frobnicate"),
        (["mocov4"], "method: Input should be 'simclr', 'moco', 'moco-v3', 'npid'"),
        (["--epochs", "many"], "epochs: Input should be a valid integer"),
        (["--epochs", "0"], "epochs: Input should be greater than 0"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--chunk-size", "0"], "chunk_size: Input should be greater than 0"),
        (["--chunk-size", "-4"], "chunk_size: Input should be greater than 0"),
        (["--lr", "nan"], "lr: Input should be a finite number"),
        (["--autocast", "int8"], "autocast: Input should be 'none', 'bf16' or 'fp16'"),
        (["--batch-size", "99999"], "batch_size 99999 is larger than the data set: 1438"),
        (["--encoder", "vgg"], "no encoder 'vgg'; there are: small-cnn"),
        (["--encoder", "keras:x"], "no encoder 'keras:x'; there are: small-cnn"),
        (["--data", "svhn"], "no data 'svhn'; there are: digits, folder:PATH"),
        (["--data", "no/where"], "data 'no/where': there is no such folder"),
        (["--data", __file__], "is a file; give the folder of the images"),
        (["--data", "folder:/nowhere"], "there is no folder /nowhere"),
        (["--data", "folder"], "should read folder:PATH"),
        (["--data", "digits:x"], "should read digits"),
        (["--views", "crazy"], "no recipe of views 'crazy'; there are: digits, small, photo"),
        (["--head", "v9"], "no head 'v9'; there are: v1, v2"),
        (["--optimizer", "adam"], "no optimizer 'adam'; there are: sgd, adamw"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--device", "cuda:99"], "CUDA device"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (["--resume", "/nowhere"], "/nowhere: there is no run in it"),
        (["--run-dir", "/proc/none"], "/proc/none: cannot be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert err.startswith("fastssl train: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3", "no setting 'epoch'"),
        ("epochs: three", "epochs: Input should be a valid integer"),
        ("epochs: [3", "not YAML"),
        ("- epochs", "must hold settings"),
        ("epochs: !!python/object/apply:os.system [echo executed]", "not YAML"),
        ("epoch: 3\nlr: -1", "no setting 'epoch'"),
    ],
)
def test_a_mistake_in_yaml_is_one_line(text, says, capfd, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["train", "--config", str(path)]) == 2
    out, err = capfd.readouterr()
    assert err.startswith(f"fastssl train: {path}: ")
    assert says in err
    assert err.count("\n") == 1
    assert "executed" not in out


def test_binary_is_no_yaml(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_yaml(tmp_path / "x.yaml")
