"""The host's work in a call: measured where all is launched that is counted, and kept little."""

from __future__ import annotations

import json

import pytest

from bench import host, launches
from fastssl import backends

pytestmark = pytest.mark.skipif(
    bool(backends.unavailable("triton")) or backends.interpreting(), reason="needs Triton's own"
)


def test_it_launches_what_is_counted():
    known = json.loads(launches.PATH.read_text())
    with host.without_device() as launched:
        found = host.calls()
        assert found.keys() == known.keys()
        for name, (ours, eager) in found.items():
            launched.clear()
            ours()
            assert len(launched) == len(known[name]["forward"]["triton"]), name
            launched.clear()
            eager()
            assert not launched


@pytest.mark.parametrize(("name", "most"), [("EMA.update", 0.15), ("LARS.step", 0.8)])
def test_steps_of_hundreds_of_tensors_are_planned(name, most, monkeypatch):
    pair = host.calls()[name]
    monkeypatch.setattr(host, "calls", lambda: {name: pair})
    found = host.measure(seconds=0.5)[name]
    assert found.keys() == {"forward"}
    assert 0 < found["forward"]["ratio"] < most


def test_table():
    passes = {"forward": {"us": 12.3, "ratio": 0.5, "launches": 1}}
    told = {"machine": {"cpu": "X", "torch": "2", "triton": "3"}, "calls": {"x": passes}}
    assert "| x | 12 (×0.50) |  |" in host.table(told)
