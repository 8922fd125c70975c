"""Every shipped configuration compiles for sm_80 and sm_90, without a GPU, and compiles well.

No registers spilled, shared memory within the chip's, the matrix products on the tensor cores
(on Hopper by warp groups), and those not forced into single file.
"""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
import fastssl_kernels.similarity_lse as kernels

CHIPS = {80: kernels.Device(hopper=False, processors=108), 90: kernels.Device(True, 132)}
# What a program may have: A100's, and for the smaller tables the consumer chips'.
SHARED = {80: 99 * 1024, 90: 227 * 1024}
DTYPES = {2: torch.bfloat16, 4: torch.float32}
WIDTHS = {64: 64, 128: 128, 256: 256, 0: 512}  # key of the table: features


class Problem(NamedTuple):
    capability: int
    dtype: torch.dtype = torch.bfloat16
    d: int = 128
    m: int = 8192
    k: int | None = None
    learned: bool = False  # the scale is a tensor

    def launches(self) -> list[codegen.Launch]:
        x, lse = torch.empty(self.m, self.d, dtype=self.dtype), torch.empty(self.m).double()
        y = None if self.k is None else torch.empty(self.k, self.d, dtype=self.dtype)
        scale = torch.tensor(10.0) if self.learned else None
        symmetric = self.k is None
        options = (10.0, True, 0 if symmetric else None, self.m // 2 if symmetric else 0, symmetric)
        inputs, needs = (x, y, scale), (True, not symmetric, self.learned)
        chip = CHIPS[self.capability]
        return [
            *codegen.record(kernels, chip, "launch_similarity_lse_fwd", *inputs, *options),
            *codegen.record(
                kernels, chip, "launch_similarity_lse_bwd", lse, lse, *inputs, lse, *options, *needs
            ),
        ]


# Every set of tiles (float32's differ by width only in how often a loop turns), then the sides of
# MoCo's matrix, float16, a width and rows that no vector load divides, and very many rows.
PROBLEMS = [
    *(
        Problem(capability, dtype, d, learned=learned)
        for capability, learned in itertools.product(CHIPS, (False, True))
        for dtype, widths in ((torch.bfloat16, WIDTHS.values()), (torch.float32, (64, 512)))
        for d in widths
    ),
    Problem(90, m=256, k=65536),
    Problem(90, m=256, k=4096, learned=True),
    Problem(90, torch.float16),
    Problem(90, d=100, m=1002),
    Problem(90, m=1 << 20),
]


def build_all(problem: Problem) -> list[codegen.Built]:
    built = {}
    for launch in problem.launches():
        if codegen.key(launch) not in built:
            built[codegen.key(launch)] = codegen.build(launch, problem.capability)
    return list(built.values())


@pytest.fixture(scope="module")
def compiling():
    # Spawned, for LLVM does not survive a fork among threads.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {problem: pool.submit(build_all, problem) for problem in PROBLEMS}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))
def test_compiles_well(problem, compiling):
    for built in compiling[problem].result():
        assert not built.local, f"{built.name} spills: {built}"
        assert built.shared <= SHARED[problem.capability], str(built)
        if built.name in ("_similarity_lse_fwd_triangle_kernel", "_similarity_lse_fwd_kernel") or (
            built.name == "_similarity_lse_bwd_kernel"
        ):
            assert built.tensor > 0, str(built)
            if problem.capability == 90:
                assert built.warp_group == built.tensor, str(built)
                # A commit after every instruction would mean that ptxas gave up overlapping.
                assert built.commits <= built.tensor / 2, str(built)


def test_the_tables_are_complete():
    for table in kernels.TILES.values():
        assert table.keys() == {
            (kind, width, key)
            for kind in ("triangle", "fwd", "bwd", "bwd safe")
            for width in DTYPES
            for key in WIDTHS
        }
        assert all(t.block_m == t.block_n for (kind, *_), t in table.items() if kind == "triangle")
