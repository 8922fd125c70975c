"""Two processes under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_run import settings

from fastssl.data import build_recipe, load_data
from fastssl.errors import UserError
from fastssl.training import Trainer
from fastssl.training.ranks import Ranks, choose_device
from fastssl.training.run import build_method

HERE = Path(__file__).parent


def test_two_processes(tmp_path):
    paths = [str(HERE.parents[1]), str(HERE.parents[1] / "kernels"), str(HERE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*torchrun, str(HERE / "two_ranks.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done") == 2


def trainer(tmp_path, rank, world_size, **values):
    data = load_data("digits")
    config = settings(tmp_path, **values)
    method = build_method(config, data.train.shape)
    here = Ranks(rank, world_size, torch.device("cpu"))
    return Trainer(method, data.train, build_recipe("digits"), config, here)


def test_ranks_share_each_batch_and_an_epoch_shows_no_image_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("fastssl.training.trainer.DistributedDataParallel", lambda m, **_: m)
    monkeypatch.setattr("fastssl.training.trainer.share_state", lambda m: None)
    parts = [trainer(tmp_path, rank, 2, batch_size=100) for rank in (0, 1)]
    assert parts[0].steps_per_epoch == 14
    seen = [part._load(step)[0] for step in range(14) for part in parts]
    assert {len(indices) for indices in seen} == {50}
    assert len(torch.cat(seen).unique()) == 1400
    assert not torch.equal(parts[0]._load(0)[0], parts[0]._load(14)[0]), "another order each epoch"


def test_a_batch_must_divide_among_ranks(tmp_path):
    with pytest.raises(UserError, match="batch_size 101 does not divide among 2 ranks"):
        trainer(tmp_path, 0, 2, batch_size=101)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("tpu", "meta", "cuda:99"):
        with pytest.raises(UserError, match=name):
            choose_device(name)
