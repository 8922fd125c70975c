"""sinkhorn over ranks: the rows of one process with the whole batch, shares of any size."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from fastssl.functional import sinkhorn, sinkhorn_potentials
from tests.distributed.launch import launch
from tests.ops.test_sinkhorn import scores, variation


def cases():
    rank, size = dist.get_rank(), dist.get_world_size()
    shares = [7, 1, 12][:size]
    easy, wide = scores(sum(shares), 33), scores(sum(shares), 33, 500.0)
    apart = scores(sum(shares), 33)
    apart[:7] -= 1000  # one rank's scores far below the others'
    apart[7:, 4] = -float("inf")  # a column that one rank has for itself
    for x in (easy, wide, apart):
        for iterations in (1, 3):
            for y in (x, x.bfloat16()):
                mine = y.split(shares)[rank]
                whole = sinkhorn(y, iterations=iterations).split(shares)[rank]
                assert variation(sinkhorn(mine, iterations=iterations, group=True), whole) < 1e-6
                u, v = sinkhorn_potentials(mine, iterations=iterations, group=True)
                right_u, right_v = sinkhorn_potentials(y, iterations=iterations)
                torch.testing.assert_close(u, right_u.split(shares)[rank], atol=1e-5, rtol=1e-9)
                torch.testing.assert_close(v, right_v, atol=1e-5, rtol=1e-9)
    easy[3, 3] = float("nan")  # on the first rank
    assert sinkhorn(easy.split(shares)[rank], group=True).isnan().all()
    with pytest.raises(ValueError, match="iterations: 3"):
        sinkhorn(easy, iterations=3 + rank, group=True)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_are_one(size):
    launch(cases, size)
