"""What feeding a step costs: ``python bench/feeding.py [gather] [prefetch] [step]``, all three
where none is named. Each prints a table; nothing is written.

- ``gather``: bytes a second of ``ImageStore.gather`` from a mapped cache beside a plain copy of as
  many bytes into new memory, in turns; and what it takes where nothing need be copied.
- ``prefetch``: batches of JPEGs decoded ahead of a use that takes as long as decoding, and leaves
  the processor alone as a GPU's does: how much of the decoding is hidden.
- ``step``: shares of a SimCLR step of ResNet-18 on 32 × 32 pixels (CIFAR-10's recipe) on this CPU:
  waiting for the batch, augmentation, and the rest; beside them what the loading thread did
  meanwhile. Of issue 5: augmentation takes less than 5 %. ``--size``, ``--encoder`` and ``--views``
  ask the same of photographs, ``--keep`` of another way to keep them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def write_photos(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """JPEGs that cost about what photographs cost: smooth, with noise, 0.4 bytes a pixel."""
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + rng.normal(0, 20, smooth.shape)
        files.append(folder / f"{i:05}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1], quality=85)
    return files


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns."""
    taken = defaultdict(list)
    for _ in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def gather(options: argparse.Namespace) -> None:
    from fastssl.data import ImageStore, Reading

    print("gather: GB/s                     mapped    a copy    share    in memory, a batch")
    for height, width, batch, count in ((375, 500, 128, 256), (32, 32, 512, 4096)):
        with tempfile.TemporaryDirectory() as folder:
            files = write_photos(Path(folder), count, height, width)
            cache = Path(folder, "cache")
            mapped = ImageStore(files, reading=Reading(cache=cache, workers=options.workers))
            kept = ImageStore(files, reading=Reading(keep="decoded"))
            rows = torch.randperm(count)[:batch]
            whole = mapped.gather(rows).data
            runs = {
                "gather": lambda mapped=mapped, rows=rows: mapped.gather(rows),
                "copy": lambda whole=whole: torch.empty_like(whole).copy_(whole),
                "refer": lambda kept=kept, rows=rows: kept.gather(rows),
            }
            seconds = interleaved(runs, 30)
            rates = {name: whole.numel() / taken / 1e9 for name, taken in seconds.items()}
            print(
                f"{batch:4} images of {width:3} × {height:3} {rates['gather']:13.1f}"
                f"{rates['copy']:10.1f}{rates['gather'] / rates['copy']:9.0%}"
                f"{seconds['refer'] * 1e6:15.0f} µs"
            )


def prefetch(options: argparse.Namespace) -> None:
    from fastssl.data import ImageStore, Reading

    steps, batch = 12, 32
    with tempfile.TemporaryDirectory() as folder:
        files = write_photos(Path(folder), 4 * batch, 375, 500)
        size = statistics.mean(file.stat().st_size for file in files)
        store = ImageStore(files, reading=Reading(keep="files", workers=options.workers))
        order = [torch.randperm(len(files))[:batch] for _ in range(steps)]

        def decode() -> None:
            for rows in order:
                store.gather(rows)

        alone = interleaved({"decode": decode}, 3)["decode"] / steps

        def ahead() -> None:
            for _ in store.batches(order):
                time.sleep(alone)

        def after() -> None:
            for rows in order:
                store.gather(rows)
                time.sleep(alone)

        taken = {k: v / steps for k, v in interleaved({"ahead": ahead, "after": after}, 3).items()}
    hidden = (taken["after"] - taken["ahead"]) / alone
    print(f"prefetch: {batch} JPEGs of 500 × 375 ({size / 1e3:.0f} kB), {options.workers} threads")
    print(f"  decoding alone       {alone * 1e3:7.1f} ms a batch, {batch / alone:.0f} images/s")
    print(f"  then a use as long   {taken['after'] * 1e3:7.1f} ms")
    print(f"  ahead of that use    {taken['ahead'] * 1e3:7.1f} ms: {hidden:.0%} hidden, and of")
    print(
        f"                       {steps} batches the first cannot be: at most {1 - 1 / steps:.0%}"
    )


class Stopwatch:
    """Seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - begin

    def around(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(what):
                return function(*args, **kwargs)

        return timed


def step(options: argparse.Namespace) -> None:
    from fastssl.data import ImageStore, Reading, build_recipe
    from fastssl.training import TrainConfig, Trainer
    from fastssl.training.build import build_method
    from fastssl.training.ranks import Ranks

    batch, side = options.batch_size, options.size
    height, width = (side, side) if side <= 64 else (375, 500)
    with tempfile.TemporaryDirectory() as folder:
        files = write_photos(Path(folder), batch * 2, height, width)
        images = ImageStore(
            files, size=side, reading=Reading(keep=options.keep, workers=options.workers)
        )
        config = TrainConfig(
            method="simclr",
            preset="cifar10",
            encoder=options.encoder,
            views=options.views,
            epochs=100,
            batch_size=batch,
            chunk_size=None,
            warmup_epochs=1,
            device="cpu",
        )
        method = build_method(config, images.shape, samples=len(images))
        recipe = build_recipe(options.views, side, channels_last=config.channels_last)
        trainer = Trainer(method, images, recipe, config, Ranks(0, 1, torch.device("cpu")))
        steps = trainer.steps()
        next(steps)  # which allocates
        watch = Stopwatch()
        trainer.recipe = watch.around("augmentation", trainer.recipe)
        trainer._read = watch.around("decode and gather, in its thread", trainer._read)
        trainer._train_step = watch.around("step", trainer._train_step)
        with watch.on("all"):
            for _ in range(options.steps):
                next(steps)
        steps.close()
    seconds = {name: taken / options.steps for name, taken in watch.seconds.items()}
    reading = seconds.pop("decode and gather, in its thread", 0.0)
    whole = seconds["all"]
    parts = {
        "waiting for the batch": whole - seconds["step"],
        "augmentation": seconds["augmentation"],
        "embedding, loss, gradients, update": seconds["step"] - seconds["augmentation"],
    }
    print(
        f"step: SimCLR, {options.encoder}, {batch} images of {width} × {height}, "
        f"views {options.views!r} of {side} × {side}, {images.keep}, "
        f"{torch.get_num_threads()} threads: {whole * 1e3:.0f} ms"
    )
    for name, taken in parts.items():
        print(f"  {name:36} {taken * 1e3:9.1f} ms {taken / whole:7.2%}")
    print(f"  {'beside it: decoding and gathering':36} {reading * 1e3:9.1f} ms")


def main() -> None:
    parts = {"gather": gather, "prefetch": prefetch, "step": step}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--workers", type=int, default=2, help="threads that decode or copy")
    parser.add_argument("--keep", default="decoded", help="decoded, encoded or files; of step")
    parser.add_argument("--size", type=int, default=32, help="a view's side in pixels, of step")
    parser.add_argument("--views", default="small", help="recipe of views, of step")
    parser.add_argument("--encoder", default="resnet18-cifar", help="of step")
    parser.add_argument("--batch-size", type=int, default=128, help="images, of step")
    parser.add_argument("--steps", type=int, default=3, help="timed, of step")
    options = parser.parse_args()
    for name in options.parts or parts:
        if name not in parts:
            parser.error(f"no part {name!r}; there are {', '.join(parts)}")
        parts[name](options)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
