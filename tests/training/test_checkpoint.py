"""Checkpoints: whole or absent, and never executed."""

from __future__ import annotations

import pickle

import pytest
import torch

from fastssl.errors import UserError
from fastssl.training import load_checkpoint, save_checkpoint


def test_what_is_saved_is_loaded(tmp_path):
    state = {"step": 3, "weights": {"w": torch.rand(3)}, "note": "text", "none": None}
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(loaded["weights"]["w"], state["weights"]["w"])
    assert loaded["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"step": 1}, path)

    def half_written(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path) == {"step": 1}


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_executed(tmp_path, capsys):
    for name, write in {
        "zip": lambda path: torch.save({"step": Evil()}, path),
        "pickle": lambda path: path.write_bytes(pickle.dumps(Evil())),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_broken_and_missing_files_are_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(UserError, match=r"checkpoint\.pt: there is no such"):
        load_checkpoint(path)
    save_checkpoint({"w": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint\.pt: not a checkpoint"):
        load_checkpoint(path)
