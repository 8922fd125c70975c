"""``similarity_softplus`` compiles for sm_80 and sm_90, without a GPU, and compiles well.

As test_codegen.py asks it of ``similarity_lse``, whose tiles and helpers it shares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import fastssl_kernels.similarity_softplus as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS, SHARED, WIDTHS


class Problem(NamedTuple):
    capability: int
    dtype: torch.dtype = torch.bfloat16
    d: int = 128
    m: int = 8192
    k: int = 8192
    learned: bool = True  # scale and bias are tensors
    normalize: bool = False

    def launches(self) -> list[codegen.Launch]:
        x, y = (torch.empty(n, self.d, dtype=self.dtype) for n in (self.m, self.k))
        upstream = torch.empty(self.m).double()
        scalars = [torch.tensor(10.0) if self.learned else None] * 2
        options = (10.0, -10.0, self.normalize, 0, True)
        inputs, needs = (x, y, *scalars), (True, True, self.learned, self.learned)
        chip = CHIPS[self.capability]
        return [
            *codegen.record(kernels, chip, "launch_similarity_softplus_fwd", *inputs, *options),
            *codegen.record(
                kernels, chip, "launch_similarity_softplus_bwd",
                upstream, upstream, *inputs, *options, *needs,
            ),
        ]  # fmt: skip


# Every set of tiles (float32's differ by width only in how often a loop turns), then numbers for
# scalars, float16, unequal sides, a width and rows that no vector load divides.
PROBLEMS = [
    *(
        Problem(capability, dtype, d)
        for capability in CHIPS
        for dtype, widths in ((torch.bfloat16, WIDTHS.values()), (torch.float32, (512,)))
        for d in widths
    ),
    Problem(90, learned=False),
    Problem(90, torch.float16, normalize=True),
    Problem(90, m=256, k=65536),
    Problem(90, d=100, m=1002, k=1001),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))
def test_compiles_well(problem):
    made = [codegen.build(launch, problem.capability) for launch in problem.launches()]
    assert {b.name for b in made} >= {MAIN[0], MAIN[1], "_similarity_softplus_fwd_finish_kernel"}
    for built in made:
        assert not built.local, f"{built.name} spills: {built}"
        assert built.shared <= SHARED[problem.capability], str(built)
        if built.name in MAIN:
            assert built.tensor > 0, str(built)
            if problem.capability == 90:
                assert built.warp_group == built.tensor, str(built)
                # A commit after every instruction would mean that ptxas gave up overlapping.
                assert built.commits <= built.tensor / 2, str(built)


MAIN = ("_similarity_softplus_fwd_kernel", "_similarity_softplus_bwd_kernel")
