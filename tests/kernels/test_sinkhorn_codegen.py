"""``sinkhorn`` compiles for sm_80 and sm_90, without a GPU, and without spills."""

from __future__ import annotations

import sys
from pathlib import Path

import fastssl_kernels.sinkhorn as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS, SHARED


@pytest.mark.parametrize("capability", CHIPS)
def test_compiles_well(capability):
    x, columns = torch.empty(2048, 3000), torch.empty(3000).double()
    rows = torch.empty(2048).double()
    names = set()
    for launch in codegen.record(
        kernels, CHIPS[capability], "launch_sinkhorn_fwd", x, 0.05, rows, columns, True, True
    ):
        built = codegen.build(launch, capability)
        names.add(built.name)
        assert not built.local, f"{built.name} spills: {built}"
        assert built.shared <= SHARED[capability], str(built)
    assert len(names) == 3
