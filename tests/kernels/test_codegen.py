"""Every shipped configuration compiles for sm_80 and sm_90, without a GPU, and compiles well.

No registers spilled, shared memory within the chip's, the matrix products on the tensor cores
(on Hopper by warp groups, float64's but for), and those not forced into single file.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
import fastssl_kernels.similarity_lse as kernels
from fastssl_kernels import similarity_lse_loss, similarity_lse_pairs

CHIPS = {80: kernels.Device("small", processors=108), 90: kernels.Device("hopper", 132)}
SLOW_DOUBLES = {86: kernels.Device("small", processors=84, doubles=False)}
# What a program may have: for the smaller tables the consumer chips'.
SHARED = {80: 99 * 1024, 86: 99 * 1024, 90: 227 * 1024}
DTYPES = {2: torch.bfloat16, 4: torch.float32}
WIDTHS = {64: 64, 128: 128, 256: 256, 512: 512, 0: 1024}  # key of the table: features
# Kernels of which nearly all the time is matrix products.
BWD = "_similarity_lse_bwd_kernel"
FORWARD = ("fwd", "fwd_both", "fwd_triangle", "fwd_mean")
PRODUCTS = {f"_similarity_lse_{name}_kernel" for name in (*FORWARD, "bwd")}


class Problem(NamedTuple):
    capability: int
    dtype: torch.dtype = torch.bfloat16
    d: int = 128
    m: int = 8192
    k: int | None = None
    learned: bool = False  # the scale is a tensor
    wants: Literal["", "columns", "mean"] = ""
    whole: bool = False  # compile its small passes and a rectangle's gradients too

    def launches(self) -> list[codegen.Launch]:
        x, lse = torch.empty(self.m, self.d, dtype=self.dtype), torch.empty(self.m).double()
        y = column_lse = None
        if self.k is not None:
            y = torch.empty(self.k, self.d, dtype=self.dtype)
        if self.wants == "columns":
            column_lse = torch.empty(self.k).double()
        scale = torch.tensor(10.0) if self.learned else None
        symmetric = self.k is None
        inputs, needs = (x, y, scale), (True, not symmetric, self.learned)
        options = (10.0, True, 0 if symmetric else None, self.m // 2 if symmetric else 0, symmetric)
        columns, mean = (self.wants == name for name in ("columns", "mean"))
        chip = (CHIPS | SLOW_DOUBLES)[self.capability]
        made = codegen.record(
            kernels, chip, "launch_similarity_lse_fwd", *inputs, *options, columns, mean
        )
        made += codegen.record(
            similarity_lse_loss, chip, "launch_similarity_lse_loss_fwd", lse, lse, column_lse
        )
        made += codegen.record(
            similarity_lse_loss, chip, "launch_similarity_lse_loss_bwd",
            torch.empty(()), lse, lse, column_lse,
        )  # fmt: skip
        if mean:
            made += codegen.record(
                similarity_lse_pairs, chip, "launch_similarity_lse_pairs_bwd",
                lse, lse, x, x, scale, torch.empty_like(x).float(), 10.0, True,
                True, True, self.learned,
            )  # fmt: skip
        else:
            sums = (lse, column_lse)
            made += codegen.record(
                kernels, chip, "launch_similarity_lse_bwd",
                lse, *sums, *inputs, *sums, *options, *needs,
            )  # fmt: skip
        return made

    def chosen(self) -> list[codegen.Launch]:
        """Launches to compile: of those that share tiles the one with most to hold in registers,
        which of the gradients is the symmetric one's."""
        return [
            launch
            for launch in self.launches()
            if self.whole
            or launch.kernel.__name__ in PRODUCTS - ({BWD} if self.k is not None else set())
        ]


FORMS = (dict(k=None), dict(k=8192, wants="columns"), dict(k=8192, wants="mean"))
# Every set of tiles, chips whose float64 is slow, MoCo's queue, one side's sums alone, float16, a
# width and rows that no vector load divides, and very many rows.
PROBLEMS = [
    *(
        Problem(
            capability, dtype, d, learned=learned, **form,
            whole=capability == 90 and learned and d == usual,
        )
        for capability, learned, form in itertools.product((80, 90), (False, True), FORMS)
        for dtype, widths, usual in (
            (torch.bfloat16, WIDTHS.values(), 128), (torch.float32, (512,), 512)
        )
        for d in widths
    ),
    *(Problem(86, torch.float32, learned=True, **form) for form in FORMS),
    Problem(90, m=256, k=65536, wants="mean"),
    Problem(90, m=256, k=65536),
    *(Problem(90, torch.float16, learned=True, **form) for form in FORMS),
    Problem(90, torch.float16),
    *(Problem(90, d=100, m=1002, learned=True, **form | {"k": form["k"] and 1001}, whole=True)
      for form in FORMS),
    Problem(90, d=100, m=1002),
    Problem(90, m=1 << 20),
]  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))
def test_compiles_well(problem):
    exact = problem.dtype == torch.float32 and problem.learned and problem.capability != 86
    for launch in problem.chosen():
        built = codegen.build(launch, problem.capability)
        assert not built.local, f"{built.name} spills: {built}"
        assert built.shared <= SHARED[problem.capability], str(built)
        if built.name in PRODUCTS:
            assert built.tensor > 0, str(built)
            assert (built.doubles > 0) == exact, str(built)
            if problem.capability == 90:
                assert built.warp_group == built.tensor - built.doubles, str(built)
                # A commit after every instruction would mean that ptxas gave up overlapping.
                assert built.commits <= built.warp_group / 2, str(built)


def test_moco_fills_the_chip_with_three_launches_and_ends_with_three_small_ones():
    rows, main, finish, *small = Problem(90, m=256, k=65536, wants="mean").launches()
    assert [torch.tensor(launch.grid).prod() for launch in small] == [1, 2, 64]
    assert main.kernel.__name__ == "_similarity_lse_fwd_mean_kernel"
    assert 240 <= torch.tensor(main.grid).prod() <= 264  # two a multiprocessor
    assert torch.tensor(rows.grid).prod() > 132
    assert torch.tensor(finish.grid).prod() > 132


def test_the_tables_are_complete():
    kinds = {
        *itertools.product(
            ("triangle", "triangle ragged", "fwd", "softplus fwd", "softplus bwd"), DTYPES
        ),
        *itertools.product(("mean", "mean safe", "bwd", "bwd safe"), DTYPES),
        *itertools.product(("fwd exact", "mean exact", "bwd exact"), (4,)),
    }
    for table in kernels.TILES.values():
        # 512 features are held whole only where that is faster.
        assert {key for key in table if key[2] != 512} == {
            (kind, width, key)
            for kind, width in kinds
            for key in (WIDTHS.keys() - {512} if width == 2 else (0,))
        }
        triangles = [tiles for (kind, *_), tiles in table.items() if "triangle" in kind]
        assert all(tiles.block_n % tiles.block_m == 0 for tiles in triangles)
