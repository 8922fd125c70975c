"""Pretext tasks of M images of 375 × 500, views of D pixels a side, on one thread: beside the same
by torchvision and torch an image at a time, as data sets do.

Those are given the crops and flips that fastssl draws, so that all answers are alike; fastssl's
time is with drawing them. A view that is turned four times is cut out once, as one does by hand. In
bfloat16, for torchvision's and Pillow's pixels are in whole numbers. The floor is the time of the
bytes: the part of each source that is read, and the views, written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.harness import Answer, Benchmark, Case, Provider
from bench.ops.bench_augment import SEED, by_torchvision, inputs, score, source
from bench.peers import _peer

Pixels = Callable[
    [Any, list[float], int], Tensor
]  # image, row, side: float [C, side, side] in [0, 1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """One task: ours, what is drawn for it, and an image's views from that by hand.

    ``seen`` scores what is made; ``traffic`` is in pixels read and numbers written for an image.
    """

    make: Callable[[int], Any]
    rows: Callable[[Any, Tensor, Tensor], Tensor]  # [V · B, 19]
    plain: Callable[[Pixels, Any, list[list[float]], int], list[Tensor]]
    seen: Callable[[Any], Tensor]
    traffic: Callable[[int, int], tuple[float, float]]  # of the source's area, D


def normal(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def view_of(side: int) -> Any:
    from fastssl.augment import View

    return View(side, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5)


def rows_of_view(task: Any, images: Tensor, indices: Tensor) -> Tensor:
    from fastssl.augment import Recipe

    return Recipe((task.view,)).parameters(images, indices, SEED)[0]


def rows_of_task(task: Any, images: Tensor, indices: Tensor) -> Tensor:
    return task.parameters(images, indices, SEED)[0]


def rotation(pixels: Pixels, image: Any, rows: list[list[float]], side: int) -> list[Tensor]:
    x = normal(pixels(image, rows[0], side))
    return [x.rot90(turns, (1, 2)) for turns in range(4)]


def patches(pixels: Pixels, image: Any, rows: list[list[float]], side: int) -> list[Tensor]:
    return [normal(pixels(image, row, 96)) for row in rows]


def jigsaw(pixels: Pixels, image: Any, rows: list[list[float]], side: int) -> list[Tensor]:
    made = []
    for row in rows:
        x = pixels(image, row, 64)
        mean, std = x.mean((1, 2), keepdim=True), x.std((1, 2), correction=0, keepdim=True)
        made.append((x - mean) / std.clamp(min=1 / 255))
    return made


def colorization(pixels: Pixels, image: Any, rows: list[list[float]], side: int) -> list[Tensor]:
    from fastssl.reference.lab import ab_bins, rgb_to_lab

    lab = rgb_to_lab(pixels(image, rows[0], side))
    ab = lab[1:, ::4, ::4]
    labels = torch.cdist(ab.flatten(1).T, ab_bins()).argmin(1)
    return [lab[:1] / 100, ab / 100, labels.view(1, *ab.shape[1:]) / 313]


def masks(pixels: Pixels, image: Any, rows: list[list[float]], side: int) -> list[Tensor]:
    n = side // patch_of(side)
    order = torch.rand(n * n).argsort()
    mask = torch.ones(n * n)
    mask[order[: n * n // 4]] = 0
    return [normal(pixels(image, rows[0], side)), mask.view(1, n, n)]


def patch_of(side: int) -> int:
    return next(n for n in (16, 8, 4, 2, 1) if side % n == 0 and side > n)


def crops(area: int, side: int) -> float:
    return 0.54 * area  # on average


def scores(made: Iterable[Tensor]) -> Tensor:
    return sum(score([x]) for x in made)


def tasks() -> dict[str, Task]:
    from fastssl import augment

    return {
        "rotation": Task(
            lambda side: augment.Rotation(view_of(side)),
            rows_of_view,
            rotation,
            lambda made: scores(made.images.chunk(4)),
            lambda area, side: (crops(area, side), 12 * side**2),
        ),
        "patches": Task(
            lambda side: augment.RelativePatches(),
            rows_of_task,
            patches,
            lambda made: scores((made.centre, made.neighbour)),
            lambda area, side: (2 * area * (96 / 400) ** 2, 6 * 96**2),
        ),
        "jigsaw": Task(
            lambda side: augment.Jigsaw(),
            rows_of_task,
            jigsaw,
            lambda made: scores(made.patches),
            lambda area, side: (area * (64 / 85) ** 2, 27 * 64**2),
        ),
        "colorization": Task(
            lambda side: augment.Colorization(view_of(side)),
            rows_of_view,
            colorization,
            lambda made: scores((made.lightness / 100, made.ab / 100, made.labels[:, None] / 313)),
            lambda area, side: (crops(area, side), side**2 + (side / 4) ** 2 * 6),
        ),
        "masks": Task(
            lambda side: augment.PatchMask(view_of(side), patch_of(side)),
            rows_of_view,
            masks,
            # Which are hidden is everybody's own: how many is the same.
            lambda made: scores((made.images,)) + made.mask.float().mean(),
            lambda area, side: (crops(area, side), 3 * side**2),
        ),
    }


def task_of(case: Case) -> Task:
    return tasks()[case.task or "rotation"]


def fastssl(case: Case) -> Callable[..., Tensor]:
    task = task_of(case)
    made = task.make(case.dim)

    def run(images: Tensor) -> Tensor:
        indices = torch.arange(len(images), device=images.device)
        return task.seen(made(images, indices, SEED, dtype=case.torch_dtype))

    return run


def by_hand(case: Case, pillow: bool) -> Callable[..., Tensor]:
    f = _peer("torchvision.transforms.v2.functional", "torchvision")
    task, opened, drawn = task_of(case), [], []

    def pixels(image: Any, row: list[float], side: int) -> Tensor:
        x = by_torchvision(f, image, row, (side, side), 1)
        return f.to_dtype(f.to_image(x), torch.float32, scale=True)

    def run(images: Tensor) -> Tensor:
        if not drawn:  # decoding and drawing are nobody's here
            rows = task.rows(task.make(case.dim), images, torch.arange(len(images)))
            drawn.extend(rows.unflatten(0, (-1, len(images))).transpose(0, 1).tolist())
            opened.extend(map(f.to_pil_image, images) if pillow else images)
        made = [
            task.plain(pixels, image, rows, case.dim)
            for image, rows in zip(opened, drawn, strict=True)
        ]
        stacked = [torch.stack(views) for views in zip(*made, strict=True)]
        if case.task == "masks":
            return scores(stacked[:1]) + stacked[1].mean()
        return scores(stacked)

    return run


def answer(case: Case, tensors: tuple[Tensor, ...]) -> Answer:
    import fastssl

    task = task_of(case)
    images = tensors[0].cpu()
    with fastssl.use_backend("reference"):
        made = task.make(case.dim)(images, torch.arange(len(images)), SEED)
    return Answer(task.seen(made).double(), ())


def reference(case: Case) -> Callable[..., Tensor]:
    return lambda images: answer(case, (images,)).loss


def traffic(case: Case) -> float:
    height, width = source(case)
    read, written = task_of(case).traffic(height * width, case.dim)
    return case.rows * (3 * read + case.torch_dtype.itemsize * written)


BENCH = Benchmark(
    name="pretext",
    title="Pretext tasks of M images of 375 × 500, views of D pixels a side; no gradient",
    inputs=inputs,
    truth=answer,
    providers=(
        Provider("fastssl", fastssl),
        Provider("reference", reference),
        Provider("torchvision", lambda case: by_hand(case, pillow=False)),
        Provider("torchvision-pillow", lambda case: by_hand(case, pillow=True)),
    ),
    flops=lambda case: 0.0,
    bytes=traffic,
    rows=(16,),
    tasks=("rotation", "patches", "jigsaw", "colorization", "masks"),
    dim=224,
    dtype="bfloat16",
    threads=1,
)
