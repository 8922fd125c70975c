"""What the default recipe reaches: ``python bench/digits.py`` trains and judges as ``make train``
does, and writes bench/results/digits_simclr.json, from which bench/report.py makes the rest.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "digits_simclr.json"


def measure() -> dict[str, Any]:
    """Train by the defaults; the evaluation with settings, seconds and machine."""
    from bench import machine
    from bench.harness import Contention
    from fastssl.training import TrainConfig, train

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(run_dir=Path(folder, "run"))
        contention, start = Contention(), time.perf_counter()
        _, evaluation = train(config)
        seconds, others = time.perf_counter() - start, contention.share()
    return {
        "title": "SimCLR on scikit-learn's digits: what the default settings reach",
        "seconds": round(seconds, 1),
        "others": round(others, 3),
        "processor_seconds": round(time.process_time(), 1),
        "machine": machine.describe(),
        "config": config.model_dump(mode="json", exclude={"run_dir"}),
        "evaluation": evaluation,
    }


def main() -> int:
    from bench import report

    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    for made in (RESULT, *report.write(RESULT)):
        print(f"written: {made.name}")
    return 0


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]
    sys.exit(main())
