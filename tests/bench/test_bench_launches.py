"""Calls launch as many kernels as bench/results/launches.json says, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench import launches
from fastssl import backends


@pytest.mark.skipif(bool(backends.unavailable("triton")), reason="Triton is not installed")
def test_no_launch_is_added():
    root = launches.run.BENCH.parent
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    told = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "bench.launches", "--print"]
    done = subprocess.run(
        command, env=told, cwd=root, capture_output=True, text=True, check=True, timeout=300
    )
    found, known = json.loads(done.stdout), json.loads(launches.PATH.read_text())
    assert found.keys() == known.keys()
    for name, passes in known.items():
        for which, kinds in passes.items():
            for kind, names in kinds.items():
                assert len(found[name][which][kind]) <= len(names), (
                    f"{name}, {which}: {found[name][which][kind]}, where there were {names}; "
                    "if it must be so, run `fastssl bench launches`"
                )
    assert known["nt_xent"]["forward"]["triton"]  # counts something
    assert "index_copy_" in known["MemoryQueue.enqueue"]["forward"]["torch"]


def test_table():
    found = {"x": {"forward": {"triton": ["a", "b"], "torch": ["c"]}}}
    assert "| x | 2 + 1 |  |" in launches.table(found)
