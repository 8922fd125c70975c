"""``fastssl bench steps``: images a second of whole training steps, and our ops' share of the time.

A step is all there is: views of uint8 images, forward, loss, backward, optimiser, memories. In
turns with it the same step over views that are ready in memory: what lies between the two is what
views cost. CIFAR's shape is measured beside the loop that lightly's documentation shows: Pillow
images, torchvision's transforms in a DataLoader's workers, float32, lightly's NT-Xent; encoder,
head and batch are alike.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastssl
from bench import machine, peers, report, run
from bench.harness import Skip, interleave, quantiles, ratio
from fastssl import backends
from fastssl.augment import Recipe, View, moco_v2, simclr, swav
from fastssl.methods import METHODS, Method
from fastssl.nn import build_encoder, feature_width, projection_head
from fastssl.optim import build_optimizer

RESULTS = run.RESULTS / "local"


@dataclass(frozen=True)
class Step:
    """One kind of training step."""

    title: str
    method: str
    encoder: str
    recipe: Callable[[], Recipe]
    source: int  # pixels a side of the images
    batch: int
    optimizer: str = "sgd"
    options: dict[str, Any] = field(default_factory=dict)  # of the method
    peer: bool = False  # lightly's loop beside it


def cifar(size: int = 32) -> Recipe:
    """SimCLR's views without a blur."""
    views = tuple(replace(view, blur=0.0) for view in simclr(size).views)
    return Recipe(views)


def tiny(recipe: Recipe) -> Recipe:
    """The same at 16 pixels, small crops at 12."""
    largest = max(view.shape[0] for view in recipe.views)

    def smaller(view: View) -> View:
        return replace(view, size=16 if view.shape[0] == largest else 12, taps=None)

    return replace(recipe, views=tuple(map(smaller, recipe.views)))


STEPS = {
    "cifar": Step(
        "SimCLR, ResNet-18 at 32²", "simclr", "resnet18-cifar", cifar, 32, 512, peer=True
    ),
    "simclr": Step(
        "SimCLR, ResNet-50 at 224²", "simclr", "resnet50", lambda: simclr(224), 256, 256, "lars"
    ),
    "moco": Step(
        "MoCo v2, ResNet-50 at 224²", "moco", "resnet50", lambda: moco_v2(224), 256, 256,
        options={"queue_size": 65_536},
    ),
    "swav": Step(
        "SwAV, ResNet-50, 2 + 6 crops", "swav", "resnet50", swav, 256, 64, "lars",
        options={"prototypes": 3000, "freeze_epochs": 0},
    ),
}  # fmt: skip


def small(step: Step) -> Step:
    """What a CPU does in a moment."""
    recipe = step.recipe
    tiny_ones = {"queue_size": 32, "prototypes": 30}
    options = step.options | {k: n for k, n in tiny_ones.items() if k in step.options}
    return replace(
        step, encoder="small-cnn", recipe=lambda: tiny(recipe()), source=20, batch=8,
        options=options,
    )  # fmt: skip


def method_of(step: Step, device: str) -> tuple[Method, torch.optim.Optimizer]:
    """Of torch alone: settings and runs want packages that a bare CUDA machine lacks."""
    torch.manual_seed(0)
    encoder = build_encoder(step.encoder, 3)
    width = feature_width(encoder, (3, *step.recipe().views[0].shape))
    head = projection_head("v1", width, 512, 128)
    method = METHODS[step.method](encoder, head, temperature=0.1, **step.options)
    layout = torch.channels_last if device == "cuda" else torch.preserve_format
    method = method.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(
        step.optimizer, method, lr=0.05, momentum=0.9, weight_decay=1e-4, constant_lr=()
    )
    return method, optimizer


class Ours:
    """A step by fastssl: images stay where views are made, bfloat16 on a GPU."""

    def __init__(self, step: Step, device: str) -> None:
        self.step, self.device, self.recipe = step, device, step.recipe()
        self.method, self.optimizer = method_of(step, device)
        with fastssl.use_backend(None):
            fused = backends.select("augment", device) != "reference"
        self.place = device if fused else "cpu"
        self.images = pixels(2 * step.batch, step.source).to(self.place)
        self.half = device == "cuda"
        self.count = 0

    def views(self) -> list[Tensor]:
        """Those of the next images."""
        batch = self.step.batch
        indices = torch.arange(batch, device=self.place) + self.count % batch
        with fastssl.use_backend(None):  # it has no Triton kernel to be asked for by name
            views = self.recipe(
                self.images[indices], indices, self.count,
                dtype=torch.bfloat16 if self.half else torch.float32, channels_last=self.half,
            )  # fmt: skip
        self.count += 1
        return [view.to(self.device, non_blocking=True) for view in views]

    def learn(self, views: list[Tensor]) -> None:
        self.method.before_step(0.5, 0.5)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if self.half else nullcontext():
            z = [*self.method.embed(*views), *self.method.targets(*views)]
        self.method.loss(*z).backward()
        self.optimizer.step()
        self.method.after_step(*(x.detach() for x in z))

    def __call__(self) -> None:
        self.learn(self.views())


def theirs(step: Step, device: str) -> Callable[[], None]:
    """The loop of lightly's documentation, over an encoder and head like ours."""
    peers._peer("torchvision", "torchvision")
    transforms = peers._peer("torchvision.transforms", "torchvision")
    image = peers._peer("PIL.Image", "Pillow")
    try:
        loss = peers._peer("lightly.loss", "lightly").NTXentLoss()
    except Skip:
        loss = lambda a, b: peers.lightly_formula(a, b, 0.5)  # noqa: E731
    method, optimizer = method_of(replace(step, optimizer="sgd"), device)
    jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
    view = transforms.Compose([
        transforms.RandomResizedCrop(step.recipe().views[0].shape[0], scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([jitter], 0.8),
        transforms.RandomGrayscale(0.2),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    arrays = pixels(8 * step.batch, step.source).permute(0, 2, 3, 1).numpy()
    pictures = [image.fromarray(array) for array in arrays]

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            return view(pictures[i]), view(pictures[i])

    workers = min(16, os.cpu_count() or 1) if device == "cuda" else 0
    loader = torch.utils.data.DataLoader(
        Pairs(), step.batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def once() -> None:
        a, b = (x.to(device) for x in next(batches))
        z0, z1 = (method.embed(x)[0] for x in (a, b))
        value = loss(z0, z1)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def pixels(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def speed(once: Callable[[], None], batch: int, device: str, seconds: float) -> float:
    """Images a second, after three steps."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        once()
    wait()
    begin, steps = time.perf_counter(), 0
    while True:
        once()
        steps += 1
        if steps % 8 == 0 or device == "cpu":
            wait()  # or the queue would run ahead of the clock
            if time.perf_counter() - begin >= seconds:
                return batch * steps / (time.perf_counter() - begin)


def share(once: Callable[[], None], device: str, steps: int) -> float | None:
    """Our ops' share of the device's time; None where the profiler sees none of them."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] * cuda + [ProfilerActivity.CPU]) as told:
        for _ in range(steps):
            once()
        if cuda:
            torch.cuda.synchronize()
    events = told.key_averages()
    whole = sum(e.self_device_time_total if cuda else e.self_cpu_time_total for e in events)
    mine = [e for e in events if e.key.startswith("fastssl::")]
    taken = sum(e.device_time_total if cuda else e.cpu_time_total for e in mine)
    return taken / whole if mine and whole else None


def measure(name: str, device: str, seconds: float, *, smoke: bool = False) -> dict[str, Any]:
    """Images a second of ours, also with the views ready, our ops' share, and where there is one
    the peer's speed."""
    step = small(STEPS[name]) if smoke else STEPS[name]
    once = Ours(step, device)
    with fastssl.use_backend(None):
        views = backends.select("augment", device)
    ready = once.views()
    times, _ = interleave(
        {"whole": once, "ready": lambda: once.learn(ready)},
        device=device, seconds=2 * seconds, span=min(0.5, seconds / 6),
        rounds=1 if smoke else 30, least=1 if smoke else 3,
    )  # fmt: skip
    whole, learning = (quantiles(times[key])["p50"] / 1e3 for key in ("whole", "ready"))
    found: dict[str, Any] = {
        "step": name, "title": step.title, "batch": step.batch, "device": device, "smoke": smoke,
        "views": views if device == "cpu" or views != "reference" else "on the CPU, then copied",
        "images_per_second": step.batch / whole,
        "ready_images_per_second": step.batch / learning,
        "of_ready": 1 / ratio(times["whole"], times["ready"]),
        "share_of_our_ops": share(once, device, 1 if smoke else 3),
    }  # fmt: skip
    if step.peer:
        try:
            rival = speed(theirs(step, device), step.batch, device, seconds)
            found["lightly_images_per_second"] = rival
            found["ratio"] = found["images_per_second"] / rival
        except Skip as skip:
            found["lightly_skipped"] = str(skip)
    print(line(found), flush=True)
    return found


def line(found: dict[str, Any]) -> str:
    of_ours = found["share_of_our_ops"]
    said = f"{found['title']}, B={found['batch']}: {found['images_per_second']:.0f} images/s"
    if found["smoke"]:
        said += " (tiny: proves that it runs, no more)"
    said += f", {found['of_ready']:.0%} of the speed with views ready"
    if of_ours is not None:
        said += f", {of_ours:.0%} of the time in our ops"
    if "ratio" in found:
        said += f"; lightly's loop {found['lightly_images_per_second']:.0f}: {found['ratio']:.1f}×"
    if "lightly_skipped" in found:
        said += f"; lightly's loop: {found['lightly_skipped']}"
    return said


def goals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As bench/goals.py judges those of a benchmark; of a GPU, and of nothing tiny."""
    told = []
    for step in found:
        if step["device"] != "cuda" or step["smoke"]:
            continue
        for figure, bound, words in (
            ("of_ready", 0.95, "of the speed with views ready"),
            ("ratio", 3, "times lightly's loop"),
        ):
            if figure in step or (figure == "ratio" and STEPS[step["step"]].peer):
                value = step.get(figure)
                met = None if value is None else value >= bound
                text = f"{step['title']}: ≥ {bound:g} {words}"
                told.append({"goal": text, "value": value, "met": met})
    return told


def save(found: list[dict[str, Any]], told: dict[str, Any], path: Path) -> None:
    """The JSON, its table, and where matplotlib is at hand a picture. ``told``: of the machine."""
    where = "CUDA" if found[0]["device"] == "cuda" else "a CPU"
    results = {
        "bench": "steps", "title": f"Whole training steps, on {where}",
        "machine": told, "steps": found, "goals": goals(found),
    }  # fmt: skip
    run.save(results, path)
    report.write(path)


def main(argv: list[str]) -> int:
    words = argparse.ArgumentParser(prog="fastssl bench steps", description=__doc__)
    words.add_argument("names", nargs="*", choices=[[], *STEPS], metavar="STEP", default=[],
                       help=", ".join(STEPS))  # fmt: skip
    words.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    words.add_argument("--seconds", type=float, default=10.0, help="about how long each is timed")
    words.add_argument("--smoke", action="store_true", help="tiny sizes: does it all run?")
    words.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    options = words.parse_args(argv)
    found = [
        measure(name, options.device, options.seconds, smoke=options.smoke)
        for name in options.names or STEPS
    ]
    path = options.out or RESULTS / f"steps-{options.device}.json"
    save(found, machine.describe(options.device), path)
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
