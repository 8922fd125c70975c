"""What ranks must agree on: the same clear error on every rank, and never a wait for each other."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from fastssl.distributed import LOCAL, Ranks, agree
from tests.distributed.launch import launch


def rows(x, y=None):
    if not len(x):
        raise ValueError("x must have rows")


def disagreements():
    rank, width = dist.get_rank(), 8
    one = rank == 1
    wrong = {
        "dtype": (torch.zeros(3, width, dtype=torch.bfloat16 if one else torch.float32),),
        "width": (torch.zeros(3, width + one),),
        "gradient": (torch.zeros(3, width, requires_grad=one),),
        "presence": (torch.zeros(3, width), torch.zeros(3, width) if one else None),
        "rows": (torch.zeros(0 if one else 3, width),),
    }
    for ring in (False, True):
        for what, (x, *others) in wrong.items():
            with pytest.raises(ValueError, match="x") as error:
                agree(True, ring, rows, x=x, **dict(zip("y", others, strict=False)))
            text = str(error.value)
            if what == "rows":
                assert "x must have rows" in text
            else:
                assert "rank 0: x: float32 [rows, 8] on cpu" in text, what
                assert "rank 1: x" in text
    with pytest.raises(ValueError, match="ring: True"):
        agree(True, one, rows, x=torch.zeros(3, width))
    with pytest.raises(TypeError, match="group must be"):
        agree("all", False, rows, x=torch.zeros(3, width))

    ranks = agree(True, False, rows, x=torch.zeros(3 + rank, width))  # nobody lags behind
    assert isinstance(ranks, Ranks)
    assert ranks.samples == [3, 4]
    with torch.set_grad_enabled(not one), pytest.raises(ValueError, match="requires grad"):
        agree(True, False, rows, x=torch.zeros(3, width, requires_grad=True))


def test_disagreements_are_errors_on_every_rank():
    launch(disagreements, 2, seconds=30)


def test_one_process_is_local():
    x = torch.zeros(3, 4)
    for group in (None, False, True):
        assert agree(group, True, rows, x=x) is LOCAL
        with pytest.raises(ValueError, match="x must have rows"):
            agree(group, True, rows, x=x[:0])
