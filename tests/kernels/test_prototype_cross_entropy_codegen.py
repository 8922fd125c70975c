"""``prototype_cross_entropy`` compiles for sm_80 and sm_90, without a GPU, and compiles well."""

from __future__ import annotations

import sys
from pathlib import Path

import fastssl_kernels.prototype_cross_entropy as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS, SHARED

# DINO's two views, ten crops beside them with Sinkhorn's centres, and rows that no vector divides.
PROBLEMS = [
    (90, torch.bfloat16, 2, 65536, torch.float32),
    (80, torch.float32, 10, 3000, torch.float64),
    (90, torch.float16, 1, 1001, None),
]


@pytest.mark.parametrize(("capability", "dtype", "crops", "k", "center"), PROBLEMS, ids=str)
def test_compiles_well(capability, dtype, crops, k, center):
    student, teacher = ([torch.empty(64, k, dtype=dtype)] * n for n in (crops, 2))
    center = None if center is None else torch.zeros(2, k, dtype=center)
    options = (student, teacher, center, [0, -1], 0.1, 0.04)
    loss, stats = torch.zeros(64).double(), torch.zeros(crops + 2, 64, 2).double()
    launches = [
        *codegen.record(kernels, CHIPS[capability], "launch_prototype_cross_entropy_fwd", *options),
        *codegen.record(
            kernels, CHIPS[capability], "launch_prototype_cross_entropy_bwd", loss, stats, *options
        ),
    ]
    assert len(launches) == 3
    for launch in launches:
        built = codegen.build(launch, capability)
        assert not built.local, f"{built.name} spills: {built}"
        assert built.shared <= SHARED[capability], str(built)
