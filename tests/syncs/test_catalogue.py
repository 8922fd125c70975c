"""The catalogue that CUDA's tests run through lacks no op and no loss, and its calls can be
captured: here by the recorder, on a CUDA device as graphs (tests/gpu/test_captures_cuda.py)."""

from __future__ import annotations

import inspect

import pytest
import torch

import fastssl.functional as F
from fastssl import backends
from tests.syncs import test_functions as functions
from tests.syncs.catalogue import OPS, inputs
from tests.syncs.replay import Capture, Graph

# Not losses: algorithms over ops, which wait or have no gradient.
NO_LOSSES = {"sinkhorn", "sinkhorn_potentials", "spherical_k_means"}


def test_no_op_is_missing():
    assert set(OPS) == set(backends.ops())


def test_no_loss_is_missing():
    source = inspect.getsource(functions)
    listed = source[source.index("LOSSES = {") : source.index("NUMBERS_ONLY")]
    missing = [name for name in F.__all__ if f"F.{name}" not in listed]
    assert set(missing) == NO_LOSSES


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_replayed(name):
    """On other numbers at the same addresses: what a call of its own gives."""
    if name == "augment" and backends.select(name, "cpu") == "reference":
        pytest.skip("the reference takes an image at a time, by numbers of Python")
    held = inputs(name, 0)
    OPS[name].call(*[x.clone() for x in held])
    graph = Graph()
    with Capture(graph):
        results = OPS[name].call(*held)
    for seed in (1, 2):
        fresh = inputs(name, seed)
        for mine, x in zip(held, fresh, strict=True):
            mine.copy_(x)
        graph.replay()
        for got, want in zip(results, OPS[name].call(*fresh), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
