"""``fastssl bench steps``: images a second of whole training steps, and our ops' share of the time.

A step is all there is: views of uint8 images, forward, loss, backward, optimiser, memories. CIFAR's
shape is measured beside the loop that lightly's documentation shows: Pillow images, torchvision's
transforms in a DataLoader's workers, float32, lightly's NT-Xent; encoder, head and batch are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastssl
from bench import machine, peers, run
from bench.harness import Skip
from fastssl import backends
from fastssl.augment import Recipe, View, moco_v2, simclr, swav
from fastssl.methods import Method
from fastssl.optim import build_optimizer
from fastssl.training import TrainConfig
from fastssl.training.build import build_method

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
    queue_size: int | None = None
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
        queue_size=65_536,
    ),
    "swav": Step("SwAV, ResNet-50, 2 + 6 crops", "swav", "resnet50", swav, 256, 64, "lars"),
}  # fmt: skip


def small(step: Step) -> Step:
    """What a CPU does in a moment."""
    recipe = step.recipe
    queue = step.queue_size and 32
    return replace(
        step, encoder="small-cnn", recipe=lambda: tiny(recipe()), source=20, batch=8,
        queue_size=queue,
    )  # fmt: skip


def method_of(step: Step, device: str) -> tuple[Method, torch.optim.Optimizer]:
    options: dict[str, Any] = {"queue_size": step.queue_size} if step.queue_size else {}
    if step.method == "swav":
        options |= {"queue_epoch": 1, "freeze_epochs": 0, "prototypes": 3000}
    config = TrainConfig(
        method=step.method, encoder=step.encoder, head="v1", head_hidden=512, head_out=128,
        temperature=0.1, **options,
    )  # fmt: skip
    side = step.recipe().views[0].shape[0]
    method = build_method(config, (3, side, side))
    layout = torch.channels_last if device == "cuda" else torch.preserve_format
    method = method.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(
        step.optimizer, method, lr=0.05, momentum=0.9, weight_decay=1e-4, constant_lr=()
    )
    return method, optimizer


def ours(step: Step, device: str) -> Callable[[], None]:
    """A step by fastssl: images stay where views are made, bfloat16 on a GPU."""
    method, optimizer = method_of(step, device)
    recipe = step.recipe()
    with fastssl.use_backend(None):
        fused = backends.select("augment", device) != "reference"
    place = device if fused else "cpu"
    images = pixels(2 * step.batch, step.source).to(place)
    half = device == "cuda"
    count = 0

    def once() -> None:
        nonlocal count
        indices = torch.arange(step.batch, device=place) + count % step.batch
        with fastssl.use_backend(None):  # it has no Triton kernel to be asked for by name
            views = recipe(
                images[indices], indices, count,
                dtype=torch.bfloat16 if half else torch.float32, channels_last=half,
            )  # fmt: skip
        views = [view.to(device, non_blocking=True) for view in views]
        count += 1
        method.before_step(0.5, 0.5)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
            z = [*method.embed(*views), *method.targets(*views)]
        method.loss(*z).backward()
        optimizer.step()
        method.after_step(*(x.detach() for x in z))

    return once


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


def share(once: Callable[[], None], device: str) -> float | None:
    """Our ops' share of the device's time; None where the profiler sees none of them."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] * cuda + [ProfilerActivity.CPU]) as told:
        for _ in range(3):
            once()
        if cuda:
            torch.cuda.synchronize()
    events = told.key_averages()
    whole = sum(e.self_device_time_total if cuda else e.self_cpu_time_total for e in events)
    mine = [e for e in events if e.key.startswith("fastssl::")]
    taken = sum(e.device_time_total if cuda else e.cpu_time_total for e in mine)
    return taken / whole if mine and whole else None


def measure(name: str, device: str, seconds: float, *, smoke: bool = False) -> dict[str, Any]:
    """Images a second of ours, our ops' share, and where there is one the peer's speed."""
    step = small(STEPS[name]) if smoke else STEPS[name]
    once = ours(step, device)
    with fastssl.use_backend(None):
        views = backends.select("augment", device)
    found: dict[str, Any] = {
        "step": name, "title": step.title, "batch": step.batch, "device": device, "smoke": smoke,
        "views": views if device == "cpu" or views != "reference" else "on the CPU, then copied",
        "images_per_second": speed(once, step.batch, device, seconds),
        "share_of_our_ops": share(once, device),
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
    if of_ours is not None:
        said += f", {of_ours:.0%} of the time in our ops"
    if "ratio" in found:
        said += f"; lightly's loop {found['lightly_images_per_second']:.0f}: {found['ratio']:.1f}×"
    return said


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
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine.describe(options.device), "steps": found}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
