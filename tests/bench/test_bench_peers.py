"""Providers of peers that serve CUDA alone, over stand-ins of the same signatures in plain torch:
they set the benchmark's very problem, and one that is not installed is named."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from bench import harness, peers, report, run
from bench.harness import Case, Skip
from tests.compat.agreement import peer


def qwen3(temperature=0.07, margin=0.1, use_qq_negatives=False, use_dd_negatives=False,
          normalized_inputs=False, stable=True, tau_plus=0.0, label_smoothing=0.0):  # fmt: skip
    """memeff 0.3's: rows against all documents and, if asked for, the other queries."""
    assert not stable
    assert not normalized_inputs
    assert not use_dd_negatives
    assert margin >= 2, "else negatives are dropped"

    def loss(query, documents, hard_negatives=None, tau_plus=None):
        q, d = F.normalize(query, dim=1), F.normalize(documents, dim=1)
        logits = q @ d.T
        if use_qq_negatives:
            logits = torch.cat([logits, (q @ q.T).fill_diagonal_(-torch.inf)], dim=1)
        return F.cross_entropy(logits / temperature, torch.arange(len(q)))

    return loss


def clip(temperature=0.07, normalized_inputs=False, stable=True, tau_plus=0.0, label_smoothing=0.0):
    assert normalized_inputs
    assert not stable

    def loss(image, text, tau_plus=None):
        logits, own = image @ text.T / temperature, torch.arange(len(image))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    return loss


def linear_cross_entropy(e, c, targets, ignore_index=-100, softcap=None, reduction="mean",
                         shift=False, filter_eps="high", impl="cce"):  # fmt: skip
    """cut-cross-entropy 25.1's."""
    assert filter_eps is None, "else gradients of small probabilities are left out"
    return F.cross_entropy(e @ c.T, targets, ignore_index=ignore_index, reduction=reduction)


STAND_INS = {
    "memeff": {"MemoryEfficientQwen3Loss": qwen3, "MemoryEfficientCLIPLoss": clip},
    "cut_cross_entropy": {"linear_cross_entropy": linear_cross_entropy},
}


@pytest.fixture
def stand_ins(monkeypatch):
    for name, functions in STAND_INS.items():
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("bench", "provider"),
    [
        ("nt_xent", "memeff"),
        ("nt_xent", "cut-cross-entropy"),
        ("info_nce_queue", "cut-cross-entropy"),
        ("clip", "memeff"),
    ],
)
def test_the_same_problem(bench, provider, stand_ins):
    bench, case = run.load(bench), Case(38, 16, "float32")
    tensors = bench.inputs(case)
    chosen = bench.provider(provider)
    with pytest.raises(Skip, match="CUDA tensors only"):
        chosen.function(case)
    function = chosen.function(replace(case, device="cuda"))
    result = harness.step(function, tensors)
    found = harness.check(case, result, bench.truth(case, tensors), chosen.differs)
    assert "wrong" not in found
    assert found["loss_error"] < 1e-5
    if chosen.differs:  # and is wrong where it did not say so
        assert "wrong" in harness.check(case, result, bench.truth(case, tensors))


@pytest.mark.parametrize("module", STAND_INS)
def test_stand_ins_take_what_the_peers_take(module):
    theirs = peer(module, module)
    for name, mine in STAND_INS[module].items():
        given = inspect.signature(getattr(theirs, name))
        assert list(given.parameters) == list(inspect.signature(mine).parameters)


def test_what_is_not_installed_is_named():
    with pytest.raises(Skip, match="no-such-peer is not installed"):
        peers._peer("no_such_peer", "no-such-peer")
    results = {
        "cases": [
            {"rows": 8, "dtype": "float32", "providers": {
                "fastssl": {"p50": 1.0, "ratio": 1.0},
                "memeff": {"skipped": "memeff is not installed"},
            }}
        ]
    }  # fmt: skip
    assert "Not installed there: memeff.\n" in report.times(results)
