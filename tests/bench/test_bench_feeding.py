"""``bench/feeding.py`` measures what it says: every part runs, and the shares of a step are one."""

from __future__ import annotations

import re
import sys

import pytest

from bench import feeding


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["feeding.py", *words])
    feeding.main()


def test_the_shares_of_a_step_are_one(monkeypatch, capsys):
    options = "--encoder small-cnn --batch-size 8 --steps 2 --keep files"
    run(monkeypatch, "step", *options.split())
    out = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert float(re.search(r"beside it.* ([\d.]+) ms", out)[1]) > 0


def test_an_unknown_part(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "nothing")
    assert "no part 'nothing'" in capsys.readouterr().err
