"""The native kernels of the instruction sets that this processor would not choose.

A test marked ``instruction_sets`` runs once more for each of them: all such tests of this folder
in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastssl
from fastssl import _build
from fastssl.functional import nt_xent
from tests.numerics import relative

HERE = Path(__file__)
NARROW = ("avx2", "plain")
ASKED = os.environ.get("FASTSSL_CPU_ISA")


@pytest.mark.skipif(ASKED in NARROW, reason="runs in those processes")
@pytest.mark.parametrize("isa", NARROW)
def test_every_instruction_set(isa):
    marked = [sys.executable, "-m", "pytest", "-q", "-m", "instruction_sets", str(HERE.parent)]
    done = subprocess.run(
        [*marked, "-p", "no:cacheprovider"],
        env={**os.environ, "FASTSSL_CPU_ISA": isa},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.instruction_sets
def test_the_one_asked_for_serves():
    """Or less, where the processor has less."""
    names = ["plain", "avx2", "avx512"]
    most = names.index(ASKED) if ASKED in names else 2
    assert names.index(_build.selected_isa()) <= most


@pytest.mark.instruction_sets
@pytest.mark.parametrize(
    ("n", "d", "t"),
    [(1, 3, 0.5), (30, 17, 0.07), (211, 64, 0.5), (150, 130, 0.005), (1000, 8, 0.3)],
)
def test_nt_xent(n, d, t):
    a, b = torch.randn(2, n, d, requires_grad=True).unbind()
    losses = []
    for name in ("native", "reference"):
        with fastssl.use_backend(name):
            loss = nt_xent(a, b, t)
            losses.append((loss, *torch.autograd.grad(loss, (a, b))))
    assert all(relative(x, y, 1e-6) < 1e-5 for x, y in zip(*losses, strict=True))
