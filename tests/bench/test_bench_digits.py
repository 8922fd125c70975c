"""The accuracies in the README come from a results file, as its speeds do."""

import json

from bench import report


def results():
    cell = {"mean": 0.951, "std": 0.012}
    rows = {"5 labels a class": dict.fromkeys(("trained", "untrained", "raw pixels"), cell)}
    setup = {"train images": 1438, "test images": 359, "draws": 20, "untrained initialisations": 5}
    return {
        "title": "digits",
        "seconds": 80.0,
        "processor_seconds": 150.0,
        "others": 0.3,
        "machine": {"cpu": "a processor", "threads": 2, "torch": "2.13.0", "commit": "abc"},
        "config": {"epochs": 400, "batch_size": 1024, "chunk_size": 256},
        "evaluation": {"results": rows, "setup": setup},
    }


def test_the_section_holds_the_accuracies_and_how_they_were_had(tmp_path):
    path = tmp_path / "digits_simclr.json"
    path.write_text(json.dumps(results()))
    assert report.write(path) == [path.with_suffix(".md")]
    text = report.section("digits_simclr", tmp_path)
    assert "| 5 labels a class | 95.1 ± 1.2 | 95.1 ± 1.2 | 95.1 ± 1.2 |" in text
    assert "RankMe" not in text
    for words in ("1,438 training", "1,024 images", "80 s", "30%", "bench/digits.py"):
        assert words in text


def test_rankme_is_in_dimensions_and_a_cell_may_be_absent():
    told = results()
    rows = told["evaluation"]["results"]
    rows["RankMe, dimensions"] = {"trained": {"mean": 12.34, "std": 0.0}}
    text = report.markdown(told)
    assert "| RankMe, dimensions | 12.3 |  |  |" in text
    assert "k-means and RankMe of training features. 400 steps" in text
