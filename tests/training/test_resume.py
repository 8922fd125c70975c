"""A run killed at any moment goes on to the weights of one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path

import pytest
import torch
from test_run import TinyEncoder, metrics, settings

from fastssl.cli import main
from fastssl.errors import UserError
from fastssl.training import train
from fastssl.training.config import write_yaml

ROOT = Path(__file__).parents[2]


def encoder():
    torch.manual_seed(7)
    return TinyEncoder()


def state(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)


def what_happened(path):
    return [(line["step"], line["epoch"], line["loss"], line["lr"]) for line in metrics(path)]


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"metrics_bytes"}:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def start_and_kill(config, tmp_path, lines):
    """Run in another process, kill -9 it once it has written so many metrics."""
    write_yaml(config, tmp_path / "config.yaml")
    paths = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent)]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "killed.py"), str(tmp_path / "config.yaml")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
    )
    written = config.run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while not written.exists() or written.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


KILLED = {"epochs": 5, "batch_size": 200, "chunk_size": 80, "autocast": "bf16", "seed": 5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never interrupted."""
    path = tmp_path_factory.mktemp("whole")
    return train(settings(path, **KILLED), encoder=encoder())[0]


@pytest.mark.parametrize("seconds", [0.0, 0.3], ids=["at every step", "now and then"])
def test_after_a_kill_the_weights_are_the_same_bit_for_bit(whole, tmp_path, seconds):
    config = settings(tmp_path, run_dir=tmp_path / "killed", checkpoint_seconds=seconds, **KILLED)
    start_and_kill(config, tmp_path, lines=12)
    killed = config.run_dir
    assert len(metrics(killed)) < len(metrics(whole)) == 35
    train(config, encoder=encoder(), resume=killed)
    assert_same(state(whole), state(killed))
    assert what_happened(whole) == what_happened(killed)


def test_torn_metrics_and_a_missing_checkpoint(tmp_path):
    """Killed before the first checkpoint, in the middle of a line: it begins anew."""
    config = settings(tmp_path, epochs=1)
    whole, _ = train(config, encoder=encoder())
    before = state(whole), what_happened(whole)
    (whole / "checkpoint.pt").unlink()
    with (whole / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    train(config, encoder=encoder(), resume=whole)
    assert_same(before[0], state(whole))
    assert before[1] == what_happened(whole)


def test_the_loss_scale_and_momentum_are_restored(tmp_path):
    options = {"optimizer": "sgd", "lr": 0.1, "autocast": "fp16", "epochs": 2}
    whole, _ = train(settings(tmp_path, run_dir=tmp_path / "whole", **options), encoder=encoder())
    config = settings(tmp_path, checkpoint_seconds=0, **options)

    killed = unittest.mock.Mock(side_effect=[True] * 6 + [InterruptedError])  # in the second epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastssl.training.run_dir.Recorder.due", killed)
        with pytest.raises(InterruptedError):
            train(config, encoder=encoder())
    train(config, encoder=encoder(), resume=config.run_dir)
    assert_same(state(whole), state(config.run_dir))


def test_resume_from_the_command_line(tmp_path, capsys):
    config = settings(tmp_path, epochs=1)
    path, _ = train(config)
    before = what_happened(path)
    assert main(["train", "simclr", "--resume", str(path)]) == 0  # nothing is left to do
    assert what_happened(path) == before
    assert main(["train", "--resume", str(path), "--epochs", "9"]) == 2
    assert "--resume takes the run's own settings" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "none")]) == 2
    assert "there is no run in it" in capsys.readouterr().err
    (path / "config.yaml").write_text("epochs: none at all")
    assert main(["train", "--resume", str(path)]) == 2
    assert "epochs" in capsys.readouterr().err


def test_a_checkpoint_of_another_model(tmp_path):
    config = settings(tmp_path, epochs=1)
    path, _ = train(config)
    with pytest.raises(UserError, match="checkpoint"):
        train(config.model_copy(update={"head_out": 8}), resume=path)


def test_metrics_are_json(tmp_path):
    path, _ = train(settings(tmp_path, epochs=1), encoder=encoder())
    for line in (path / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {
            *("step", "epoch", "loss", "lr", "images_per_second", "peak_memory_mib")
        }
