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
    assert found["ready_images_per_second"] > 0
    assert 0 < found["of_ready"] < 2
    table = out.with_suffix(".md").read_text()
    assert found["title"] in table
    assert "with views ready" in table
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
    once = steps.Ours(step, "cpu")
    method = once.method
    for _ in range(3):
        before = [p.clone() for p in method.encoder.parameters()]
        once()
        after = list(method.encoder.parameters())
        assert any((a != b).any() for a, b in zip(after, before, strict=True))
    assert method.queue.position == 3 * step.batch


def test_goals_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = {
        "step": "cifar", "title": "a step", "batch": 512, "device": "cuda", "smoke": False,
        "images_per_second": 900.0, "ready_images_per_second": 1000.0, "of_ready": 0.9,
        "share_of_our_ops": 0.1, "lightly_images_per_second": 100.0, "ratio": 9.0,
    }  # fmt: skip
    steps.save([found], {"gpu": "a GPU"}, tmp_path / "steps-cuda.json")
    text = (tmp_path / "steps-cuda.md").read_text()
    assert "| a step | 512 | 900 | 1,000 | 90% | 10% | 100, 9.0× |" in text
    assert "≥ 0.95 of the speed with views ready | 0.9 | **missed** |" in text
    assert "≥ 3 times lightly's loop | 9 | met |" in text
    assert (tmp_path / "steps-cuda.png").stat().st_size > 1000
