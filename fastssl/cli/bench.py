"""``fastssl bench``: time ops and losses beside their peers, interleaved in one process."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

# The benchmarks stand beside the package in a source checkout and are not shipped with it.
ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "fastssl bench: the benchmarks are not installed with the package; "
    "run it from a source checkout (git clone, then pip install -e .)"
)


def main(argv: list[str]) -> int:
    """Run the benchmarks named on the command line; the exit status."""
    if not (ROOT / "bench" / "run.py").exists():
        print(ABSENT, file=sys.stderr)
        return 1
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        return int(import_module("bench.command").main(argv))
    except KeyboardInterrupt:
        print("fastssl bench: interrupted", file=sys.stderr)
        return 130
