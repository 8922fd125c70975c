"""What the default recipe reaches: ``python bench/digits.py`` trains and judges as ``make train``
does, and writes bench/results/digits_simclr.json, from which bench/report.py makes the rest.

``python bench/digits.py --validate epochs=150 temperature=0.5 views.bend=0`` tries other settings
on a part of the training split and judges them on the rest of it: what the recipe was chosen by,
and what a better one should be chosen by. Test images are not looked at.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

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


def validate(words: list[str]) -> dict[str, Any]:
    """The evaluation of changed settings, on one in five of the training images."""
    import torch

    from fastssl.data import Split, TensorImages, build_recipe, load_data
    from fastssl.data.sources import held_out
    from fastssl.training import TrainConfig, Trainer
    from fastssl.training.ranks import Ranks
    from fastssl.training.run import Run, build_method, judge

    changes = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words)}
    views = {
        key.removeprefix("views."): changes.pop(key) for key in list(changes) if "views." in key
    }
    config = TrainConfig(device="cpu", **changes)
    recipe = dataclasses.replace(build_recipe("digits"), **views)
    whole = load_data("digits", image_size=config.image_size).train
    parts = [
        TensorImages(whole[rows], whole.labels[rows])
        for rows in map(torch.tensor, held_out(whole.labels.tolist()))
    ]
    method = build_method(config, whole.shape)
    untrained = copy.deepcopy(method.encoder)
    for _ in Trainer(method, parts[0], recipe, config, Ranks(0, 1, torch.device("cpu"))).steps():
        pass
    run = Run(config, method.encoder, untrained, Split(*parts, "digits"), recipe)
    return judge(run, "cpu", progress=False)


def main(argv: list[str]) -> int:
    from bench import report
    from fastssl.evaluation import to_markdown

    parser = argparse.ArgumentParser(prog="python bench/digits.py", description=__doc__)
    parser.add_argument("--validate", nargs="*", metavar="SETTING=VALUE")
    options = parser.parse_args(argv)
    if options.validate is not None:
        print(to_markdown(validate(options.validate)))
        return 0
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    for made in (RESULT, *report.write(RESULT)):
        print(f"written: {made.name}")
    return 0


if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "kernels")]
    sys.exit(main(sys.argv[1:]))
