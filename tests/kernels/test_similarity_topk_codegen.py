"""``similarity_topk`` compiles for sm_80 and sm_90, without a GPU, and compiles well.

As test_codegen.py asks it of ``similarity_lse``, whose helpers it shares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import fastssl_kernels.similarity_topk as kernels
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import codegen
from test_codegen import CHIPS, SHARED


class Problem(NamedTuple):
    capability: int
    dtype: torch.dtype = torch.bfloat16
    d: int = 128
    k: int = 20
    queries: int = 10_000
    bank: int = 100_000
    normalize: bool = True

    def launches(self) -> list[codegen.Launch]:
        queries, bank = (
            torch.empty(n, self.d, dtype=self.dtype) for n in (self.queries, self.bank)
        )
        return codegen.record(
            kernels, CHIPS[self.capability], "launch_similarity_topk_fwd",
            queries, bank, self.k, self.normalize,
        )  # fmt: skip


# Every set of tiles, held whole and by chunks, with the usual numbers of neighbours, one and the
# most; then float16, and a width and rows that no vector load divides.
PROBLEMS = [
    *(
        Problem(capability, dtype, d, k)
        for capability in CHIPS
        for dtype in (torch.bfloat16, torch.float32)
        for d, k in ((128, 20), (512, 200))
    ),
    *(
        Problem(capability, dtype, k=kernels.MOST)
        for capability in CHIPS
        for dtype in (torch.bfloat16, torch.float32)
    ),
    Problem(90, k=1, normalize=False),
    Problem(90, torch.float16),
    Problem(90, d=100, queries=1002, bank=1001),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))
def test_compiles_well(problem):
    made = [codegen.build(launch, problem.capability) for launch in problem.launches()]
    built = {one.name: one for one in made}
    assert len(built) == 2
    for one in built.values():
        assert not one.local, f"{one.name} spills: {one}"
        assert one.shared <= SHARED[problem.capability], str(one)
    products = built["_similarity_topk_fwd_kernel"]
    assert products.tensor > 0
    if problem.capability == 90:
        assert products.warp_group == products.tensor, str(products)
