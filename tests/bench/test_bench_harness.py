"""The benchmark harness: right answers pass, wrong ones get no time, peers may be absent."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench import command, floors, memory, peers, run
from bench.goals import at_least, at_most
from bench.harness import Answer, Case, Provider, Skip, check, interleave, quantiles, ratio, step
from fastssl import cli

CASE = Case(32, dim=8)
NAMES = run.names()


@pytest.fixture(autouse=True)
def small_matmul(monkeypatch):
    """The matrix rate is no subject here."""
    monkeypatch.setitem(floors.MATMUL_EDGE, "cpu", 64)


def quick(bench, **more):
    return run.run_case(bench, CASE, list(more), seconds=0.05, rounds=3)


def with_providers(bench, **functions):
    """A benchmark whose only providers are these loss functions."""
    return replace(
        bench,
        providers=tuple(
            Provider(name, lambda case, f=function: lambda z0, z1: f(z0, z1, case.temperature))
            for name, function in functions.items()
        ),
    )


def test_every_benchmark_is_found():
    assert {"nt_xent", "similarity_lse"} <= set(NAMES)


# augment, its parameters and pretext tasks have no eager form: their truth is the reference.
@pytest.mark.parametrize(
    "name", [name for name in NAMES if "augment" not in name and name != "pretext"]
)
def test_truth_agrees_with_autograd_in_float64(name):
    bench = run.load(name)
    case = replace(CASE, dtype="float64")
    inputs = bench.inputs(case)
    eager = bench.provider("eager").function(case)
    entry = check(case, step(eager, inputs), bench.truth(case, inputs))
    assert "wrong" not in entry
    assert entry["grad_error"] < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_sampled_truth_agrees_with_the_full_one(name, monkeypatch):
    bench = run.load(name)
    inputs = bench.inputs(CASE)
    whole = bench.truth(CASE, inputs)
    monkeypatch.setitem(run.importlib.import_module("bench.truth").FULL, "cpu", 16)
    sampled = bench.truth(CASE, inputs)
    if sampled.sample is None:
        pytest.skip("it takes all rows at any size")
    torch.testing.assert_close(sampled.loss, whole.loss, rtol=1e-6, atol=0)
    for some, every in zip(sampled.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(some, every[sampled.sample], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [p.name for p in peers.NT_XENT])
def test_every_peer_that_is_here_is_right(name):
    bench = run.load("nt_xent")
    if name == "torch.compile":
        pytest.skip("compiles for a while; the rehearsal of make gpu runs it")
    try:
        function = bench.provider(name).function(CASE)
    except Skip as reason:
        pytest.skip(str(reason))
    inputs = bench.inputs(CASE)
    assert "wrong" not in check(CASE, step(function, inputs), bench.truth(CASE, inputs))


def test_wrong_answers_get_no_time():
    def other_loss(z0, z1, temperature):
        """In-batch InfoNCE: no negatives from the own view."""
        logits = F.normalize(z0, dim=1) @ F.normalize(z1, dim=1).T / temperature
        return F.cross_entropy(logits, torch.arange(len(z0)))

    def half_gradient(z0, z1, temperature):
        """The right loss, with a gradient that leaves one view out."""
        return peers.eager_nt_xent(z0, z1.detach() + 0 * z1, temperature)

    def broken(z0, z1, temperature):
        raise RuntimeError("out of order")

    functions = {"other": other_loss, "half": half_gradient, "broken": broken}
    bench = with_providers(run.load("nt_xent"), good=peers.eager_nt_xent, **functions)
    entries = quick(bench, good=1, other=1, half=1, broken=1)["providers"]
    assert "p50" in entries["good"]
    for name in ("other", "half"):
        assert "p50" not in entries[name]
        assert "off by" in entries[name]["wrong"]
    assert entries["broken"] == {"failed": "RuntimeError: out of order"}


def test_another_problem_is_named_and_only_held_to_be_alike():
    functions = {
        "alike": lambda z0, z1, t: 1.1 * peers.eager_nt_xent(z0, z1, t),
        "unlike": lambda z0, z1, t: 2 * peers.eager_nt_xent(z0, z1, t),
    }
    bench = with_providers(run.load("nt_xent"), **functions)
    bench = replace(
        bench,
        truth=lambda case, z: Answer(peers.eager_nt_xent(*z, case.temperature), ()),
        inputs=lambda case: tuple(torch.rand(2, 16, 8)),  # without gradient, as views are
        providers=tuple(replace(p, differs="a tenth more") for p in bench.providers),
    )
    found = quick(bench, alike=1, unlike=1)
    entries = found["providers"]
    assert entries["alike"]["differs"] == "a tenth more"
    assert "p50" in entries["alike"]
    assert "alike: another problem – a tenth more" in run.table(found)
    assert "p50" not in entries["unlike"]
    assert "unlike: another" not in run.table(found)


def test_kornia_is_measured_where_it_is():
    for name in ("augment", "augment_32"):
        provider = run.load(name).provider("kornia")
        assert "antialias" in provider.differs
        try:
            function = provider.function(Case(64, 24))
        except Skip as reason:
            pytest.skip(str(reason))
        bench, case = run.load(name), Case(64, 24)
        inputs = bench.inputs(case)
        entry = check(case, step(function, inputs), bench.truth(case, inputs), provider.differs)
        assert "wrong" not in entry


@pytest.mark.parametrize("task", run.load("pretext").tasks)
def test_pretext_tasks_are_the_same_by_hand(task):
    bench, case = run.load("pretext"), Case(5, 96, "bfloat16", task=task)
    inputs = bench.inputs(case)
    truth, skipped = bench.truth(case, inputs), []
    for provider in bench.providers:
        try:
            entry = check(case, step(provider.function(case), inputs), truth)
        except Skip as reason:
            skipped.append(str(reason))
            continue
        assert "wrong" not in entry, (provider.name, entry)
        assert entry["loss_error"] < 0.01
    if skipped:
        pytest.skip(skipped[0])


def test_a_case_says_its_task():
    bench = replace(run.load("pretext"), bytes=None)
    found = run.run_case(bench, Case(4, 24, task="patches"), ["fastssl"], seconds=0.01, rounds=1)
    assert found["task"] == "patches"
    assert "patches M=4 D=24" in run.table(found)
    assert "M=32" in run.table(quick(run.load("nt_xent"), fastssl=1))


def test_nan_never_passes():
    bench = with_providers(run.load("nt_xent"), nan=lambda z0, z1, t: (z0 + z1).sum() * math.nan)
    assert "wrong" in quick(bench, nan=1)["providers"]["nan"]


def test_who_is_absent_or_too_large_is_skipped_by_name(monkeypatch):
    bench = run.load("nt_xent")
    monkeypatch.setattr(peers.importlib, "import_module", _raise_import_error)
    with pytest.raises(Skip, match="lightly is not importable"):
        bench.provider("lightly").function(CASE)
    with pytest.raises(Skip, match=r"above M=512: its mask is of O\(M³\)"):
        bench.provider("pytorch-metric-learning").function(Case(1024))
    with pytest.raises(Skip, match="GiB"):
        bench.provider("eager").function(Case(1 << 22))


def _raise_import_error(name):
    raise ImportError(name)


def test_interleaving_gives_slow_ones_fewer_turns():
    import time

    times, others = interleave(
        {"slow": lambda: time.sleep(0.02), "quick": lambda: None}, seconds=0.1, rounds=20
    )
    slow, quick_ = (quantiles(times[name]) for name in ("slow", "quick"))
    assert 3 <= slow["turns"] < quick_["turns"] == 20
    assert slow["best"] <= slow["p20"] <= slow["p50"] <= slow["p80"]
    assert slow["p50"] >= 20
    assert ratio(times["slow"], times["quick"]) > 100
    assert 0 <= others <= 1


def test_memory_of_a_streamed_loss_and_of_a_matrix():
    """Also that the measuring process finds the benchmark, and runs on what it is told."""
    bench = run.load("nt_xent")
    matrix = memory.measure(bench, "eager", Case(1024, dim=8))["memory_mib"]
    assert 2 * 4 < matrix < 8 * 4 + 8  # two to eight matrices of 4 MiB
    note = memory.measure(bench, "pytorch-metric-learning", Case(1024))["memory_note"]
    assert note.startswith("skipped")


def test_goals():
    results = {
        "cases": [
            {
                "rows": 64,
                "dtype": "float32",
                "device": "cpu",
                "providers": {"eager": {"ratio": 3.0}, "fastssl": {"memory_mib": 2.0}},
            }
        ]
    }
    assert at_least(3, "ratio", "eager", rows=64).judge(results)["met"] is True
    assert at_least(3.1, "ratio", "absent|eager", rows=64).judge(results)["met"] is False
    assert at_most(2, "memory_mib", "fastssl", rows=64).judge(results)["met"] is True
    assert at_most(2, "memory_mib", "fastssl", rows=128).judge(results)["met"] is None


def test_command_line(tmp_path, capsys):
    path = tmp_path / "results.json"
    words = ["bench", "nt_xent", "--rows", "64", "--dim", "8", "--peers", "eager", "--rounds", "3"]
    assert cli.main([*words, "--seconds", "0.05", "--out", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "× fastssl" in shown
    assert "eager" in shown
    results = json.loads(path.read_text())
    assert results["machine"]["torch"] == torch.__version__
    entries = results["cases"][0]["providers"]
    assert set(entries) == {"fastssl", "eager"}
    assert {"p20", "p50", "p80", "ratio", "of_floor", "loss_error"} <= set(entries["eager"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such"], "no benchmark 'no_such'"),
        (["nt_xent", "--peers", "nobody"], "no provider 'nobody'"),
        (["nt_xent", "--rows", "2"], "--rows must be"),
    ],
)
def test_command_line_refuses_in_a_line(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_source_checkout(monkeypatch, tmp_path, capsys):
    from fastssl.cli import bench

    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench.main(["nt_xent"]) == 1
    assert "source checkout" in capsys.readouterr().err
