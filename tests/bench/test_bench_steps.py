"""Benchmarks of whole steps run, at tiny sizes."""

from __future__ import annotations

import json

import pytest

from bench import command, steps


@pytest.mark.parametrize("name", steps.STEPS)
def test_a_step_runs(name, tmp_path, capsys):
    out = tmp_path / "steps.json"
    assert command.main(["steps", name, "--smoke", "--seconds", "0", "--out", str(out)]) == 0
    (found,) = json.loads(out.read_text())["steps"]
    assert found["images_per_second"] > 0
    assert found["smoke"]
    assert "proves that it runs" in capsys.readouterr().out
    if name == "cifar":
        assert "lightly_skipped" in found or found["ratio"] > 0


def test_it_measures_what_it_says():
    """Sizes that are promised, and another step for each call."""
    sizes = {name: (step.batch, step.encoder) for name, step in steps.STEPS.items()}
    assert sizes["cifar"] == (512, "resnet18-cifar")
    assert sizes["simclr"] == (256, "resnet50")
    assert len(steps.swav().views) == 8
    step = steps.small(steps.STEPS["moco"])
    once = steps.ours(step, "cpu")
    method = once.__closure__[[*once.__code__.co_freevars].index("method")].cell_contents
    for _ in range(3):
        before = [p.clone() for p in method.encoder.parameters()]
        once()
        after = list(method.encoder.parameters())
        assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert method.queue.position == 3 * step.batch
