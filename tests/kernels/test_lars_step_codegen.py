"""``lars_step`` compiles for sm_80 and sm_90, without a GPU, and by whole vectors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fastssl_kernels.lars_step as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS

F32, BF16 = torch.float32, torch.bfloat16


# The usual one; then narrow weights with an average, Nesterov and norms of velocities.
@pytest.mark.parametrize(
    ("capability", "dtype", "average", "options"),
    [
        (90, F32, None, (0.9, 1e-4, 1e-3, 0.0, "classic", False, False)),
        (80, BF16, F32, (0.9, 1e-4, 1e-3, 0.0, "popular", True, False)),
    ],
    ids=["float32", "everything"],
)
def test_compiles_well(capability, dtype, average, options):
    lists = [[torch.zeros(n, dtype=of) for n in (10_000, 64)] for of in (dtype, dtype, F32)]
    lists += [[torch.zeros(n, dtype=average) for n in (10_000, 64)] if average else []]
    launches = codegen.record(
        kernels, CHIPS[capability], "launch_lars_step_fwd",
        *lists, torch.tensor(0.1), 1.0, *options, None, 0.99,
    )  # fmt: skip
    assert [launch.grid for launch in launches] == [(4,), (2,), (4,)]
    for launch, vectors in zip(launches, (True, False, True), strict=True):
        _, sass, usage = codegen.assemble(launch, capability)
        assert "STACK:0" in usage
        assert not re.findall(r"\b(?:LDL|STL)\b", sass)
        if vectors:
            assert re.search(r"LDG\.E\S*\.128", sass), "no vector loads"
    assert re.search(r"STG\.E\S*\.128", sass), "no vector stores"
