"""Tables are made from results files alone, and the README's are those of the files beside it."""

from __future__ import annotations

import json

import pytest

from bench import report

RESULTS = {
    "bench": "nt_xent",
    "title": "NT-Xent",
    "machine": {"cpu": "a CPU", "threads": 2, "torch": "2", "commit": "abc", "date": "2026-01-02 "},
    "cases": [
        {
            "rows": rows,
            "dim": 128,
            "dtype": "float32",
            "temperature": 0.1,
            "floor_ms": rows / 100,
            "others": 0.0,
            "providers": {
                "eager": {"p50": 12.0, "ratio": 6.0, "of_floor": 0.1, "memory_mib": 2048.0},
                "fastssl": {"p50": 2.0, "ratio": 1.0, "of_floor": 0.6, "memory_mib": 1.5},
                "lightly": {"skipped": "lightly is not importable here"},
            },
        }
        for rows in (128, 8192)
    ],
    "goals": [{"goal": "fast", "value": 6.0, "met": True}],
}


def test_tables():
    text = report.markdown(RESULTS)
    assert "| 8,192 | 2.00 | 0.60 | 6.0× |" in text
    assert "| 8,192 | 1.5 MiB | 2.0 GiB |" in text
    assert "a CPU, 2 threads, torch 2, commit abc, 2026-01-02" in text
    assert "`fastssl bench nt_xent`" in text


def test_another_problem_is_named_below():
    case = {**RESULTS["cases"][0], "providers": dict(RESULTS["cases"][0]["providers"])}
    case["providers"]["kornia"] = {"p50": 9.0, "ratio": 4.5, "differs": "no antialias"}
    text = report.markdown({**RESULTS, "cases": [case]})
    assert "| 4.5× |" in text
    assert "kornia: another problem – no antialias.\n" in text


def test_sections_are_refreshed_and_nothing_else(tmp_path):
    (tmp_path / "nt_xent-cpu.json").write_text(json.dumps(RESULTS))
    readme = "before\n<!-- bench:nt_xent-cpu -->\nold\n<!-- /bench -->\nbetween\n"
    readme += "<!-- bench:nt_xent-cuda -->\n<!-- /bench -->\nafter\n"
    fresh = report.refreshed(readme, tmp_path)
    assert "old" not in fresh
    assert report.markdown(RESULTS) in fresh
    assert "no CUDA machine has run" in fresh
    assert fresh.startswith("before\n<!-- bench:nt_xent-cpu -->\n")
    assert fresh.endswith("<!-- /bench -->\nafter\n")
    assert report.refreshed(fresh, tmp_path) == fresh


def test_readme_shows_what_the_results_files_say():
    readme = report.ROOT / "README.md"
    if not readme.exists() or not report.SECTION.search(readme.read_text()):
        pytest.skip("the README has no bench sections")
    text = readme.read_text()
    assert report.refreshed(text) == text, "run: python bench/report.py --readme"


def test_plot_and_markdown_files(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "nt_xent-cpu.json"
    path.write_text(json.dumps(RESULTS))
    made = report.write(path)
    assert [p.suffix for p in made] == [".md", ".png"]
    assert made[1].read_bytes().startswith(b"\x89PNG")
    assert "| fast | 6 | met |" in made[0].read_text()


def test_no_file_of_results_tells_where_it_was_made():
    for path in report.RESULTS.glob("*.json"):
        text = path.read_text()
        assert "/home" not in text
        assert "/work" not in text
        assert "/root" not in text
