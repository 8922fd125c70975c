"""Predictions stand beside what was measured on the chip that measured it, or say why not."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")
from fastssl import backends

if backends.interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from bench.codegen import beside

CASE = {"rows": 256, "dim": 64, "dtype": "bfloat16"}


def results(gpu: str | None, **ours: float) -> str:
    case = CASE | {"providers": {"fastssl": ours}}
    return json.dumps({"machine": {"gpu": gpu, "commit": "abc"}, "cases": [case]})


def test_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(beside.predict, "seconds", lambda launches, chip: 1e-3 / len(launches))
    path = tmp_path / "info_nce_queue-cuda.json"
    path.write_text(results("NVIDIA H100 80GB HBM3", p50=4.0, graph_ms=3.0))
    assert beside.main([str(tmp_path)]) == 0
    found = json.loads((tmp_path / "codegen-cuda.json").read_text())
    (row,) = found["rows"]
    assert found["chip"] == "H100"
    assert row["measured_ms"] == 3.0
    assert row["ratio"] == pytest.approx(row["measured_ms"] / row["predicted_ms"])
    table = (tmp_path / "codegen-cuda.md").read_text()
    assert "| info_nce_queue, 256 × 64, bfloat16 | " in table
    assert " | 3 in a graph | " in table
    assert "for an H100" in table


def test_every_case_has_launches():
    chip = beside.CHIPS["H200"]
    for name, launches in beside.LAUNCHES.items():
        assert launches(chip, CASE), name


def test_what_cannot_be_predicted(tmp_path, monkeypatch, capsys):
    def fails(launches, chip):
        raise RuntimeError("ptxas")

    monkeypatch.setattr(beside.predict, "seconds", fails)
    path = tmp_path / "nt_xent-cuda.json"
    path.write_text(results("NVIDIA H200", p50=4.0))
    assert beside.main([str(tmp_path)]) == 1
    assert "not predicted – RuntimeError: ptxas" in capsys.readouterr().out
    path.write_text(results("a chip of tomorrow", p50=4.0))
    assert beside.main([str(tmp_path)]) == 0
    assert "No rates are known of a chip of tomorrow" in (tmp_path / "codegen-cuda.md").read_text()
