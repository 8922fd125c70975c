"""``ema_update`` compiles for sm_80 and sm_90, without a GPU, and by whole vectors."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import fastssl_kernels.ema_update as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensors(dtypes):
    return [torch.zeros(10_000, dtype=dtype) for dtype in dtypes]


# As models are: float32 with counters, a float32 average of bfloat16 weights; then everything.
@pytest.mark.parametrize(
    ("capability", "targets", "sources"),
    [
        (90, (torch.float32, torch.int64), (torch.float32, torch.int64)),
        (80, (torch.float32,), (torch.bfloat16,)),
        (90, FLOATS, FLOATS[1:] + FLOATS[:1]),
    ],
    ids=["float32", "master", "mixture"],
)
def test_compiles_well(capability, targets, sources):
    (launch,) = codegen.record(
        kernels, CHIPS[capability], "launch_ema_update_fwd",
        tensors(targets), tensors(sources), None, 0.99,
    )  # fmt: skip
    floats = sum(t.is_floating_point for t in targets)
    assert launch.grid == (3 * floats + 20 * (len(targets) - floats),)  # of 4,096 elements or bytes
    _, sass, usage = codegen.assemble(launch, capability)
    assert "STACK:0" in usage
    assert not re.findall(r"\b(?:LDL|STL)\b", sass)
    assert re.search(r"LDG\.E\.128", sass), "no vector loads"
    assert re.search(r"STG\.E\.128", sass), "no vector stores"
