"""A whole run: data, method, training, evaluation, pictures."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastssl.data import (
    Images,
    ImageStore,
    Reading,
    Split,
    Unreadable,
    Views,
    build_recipe,
    fitted,
    load_data,
)
from fastssl.errors import UserError
from fastssl.evaluation import QUICK_TASKS, WITHOUT_LABELS, evaluate_encoder, write_report
from fastssl.methods import METHODS, Method
from fastssl.nn import feature_width, first_layers
from fastssl.training.build import build_method
from fastssl.training.checkpoint import load_checkpoint
from fastssl.training.config import TrainConfig, config_from
from fastssl.training.pictures import draw_pictures
from fastssl.training.ranks import choose_device, ranks
from fastssl.training.run_dir import (
    CHECKPOINT,
    Recorder,
    new_run_dir,
    peak_memory_mib,
    read_config,
    read_metrics,
    write_unreadable,
)
from fastssl.training.trainer import READ_EVERY, StepResult, Trainer

JUDGED_IMAGES = 10_000  # of either split at most
JUDGED_BYTES = 2**30
INITIALISATIONS = 5  # judged of an untrained encoder, where it is small
SMALL_ENCODER = 1_000_000  # parameters
NAMED = 5  # files that cannot be read


@dataclass(frozen=True)
class Run:
    """A run read back: what is needed to judge or use its encoder."""

    config: TrainConfig
    encoder: nn.Module  # trained, in evaluation mode
    untrained: nn.Module  # with the weights training began with
    data: Split
    recipe: Views
    head_layers: int = 0  # of the projection head that the encoders end with


def train(
    config: TrainConfig,
    *,
    encoder: nn.Module | None = None,
    resume: Path | str | None = None,
) -> tuple[Path | None, dict[str, Any] | None]:
    """Train by the settings of a config, in a run directory; under torchrun, with its processes.

    Torch's global generators are seeded by ``config.seed``.

    Args:
        config: the settings.
        encoder: any module from [B, C, H, W] to [B, F], used in place of ``config.encoder``.
        resume: the directory of a run to go on with, its config the same; the weights become those
            of a run that was never interrupted. A run killed before its first checkpoint begins
            anew.

    Returns:
        The run directory (None in a process that is not the first), and the evaluation's report
        (None where it is off).

    Raises:
        UserError: a wrong setting, a missing or broken file.
    """
    if encoder is not None:
        config = config.model_copy(update={"encoder": f"python:{type(encoder).__name__}"})
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with ranks(config.device) as here:
        data, recipe = _data(config, progress=here.first)
        method = build_method(config, data.train.shape, encoder, samples=len(data.train))
        check_sizes(method.encoder, data.train, recipe)
        untrained = copy.deepcopy(method.encoder)
        trainer = Trainer(method, data.train, recipe, config, here)
        path = Path(resume) if resume is not None else None
        if not here.first:
            if path and (path / CHECKPOINT).exists():
                trainer.load_state_dict(load_checkpoint(path / CHECKPOINT))
            for _ in trainer.steps():
                pass
            return None, None
        path = path or new_run_dir(config)
        write_unreadable(data.unreadable, path)
        _say_left_out(data.unreadable)
        _fit(trainer, Recorder(path, config.checkpoint_seconds))

        trained = copy.deepcopy(untrained)  # a plain module, whatever was compiled or moved
        trained.load_state_dict(method.encoder.state_dict())
        run = Run(config, trained.to(here.device).eval(), untrained.to(here.device), data, recipe)
        report = judge(run, here.device) if config.evaluate else None
        if report:
            write_report(report, path)
        if config.pictures:
            draw_pictures(path, read_metrics(path), run.encoder, data, recipe, here.device)
        _say_left_out(data.unreadable)  # again, for the first time is long ago
        return path, report


def load_run(
    path: Path | str,
    *,
    device: str = "auto",
    head_layers: int = 0,
    eval_crop: float | None = None,
) -> Run:
    """Read back the encoder, the data and the settings of a run.

    Args:
        path: its directory.
        device: where the encoders are put.
        head_layers: how many of the projection head's first layers count as the encoder's last; 1
            where SimCLR v2 fine-tunes.
        eval_crop: as of :class:`TrainConfig`, in place of the run's own.

    Raises:
        UserError: it holds no run or no checkpoint, the data is gone, or the head has no such
            layers.
    """
    config = read_config(Path(path))
    if eval_crop is not None:
        config = config_from({**config.model_dump(), "eval_crop": eval_crop}, "settings")
    state = load_checkpoint(Path(path) / CHECKPOINT)
    data, recipe = _data(config)
    method = build_method(config, data.train.shape, samples=len(data.train))
    encoder = encoder_of(method, head_layers)
    untrained = copy.deepcopy(encoder)
    try:
        method.load_state_dict(state["method"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path}: the checkpoint is not of the config's model") from error
    chosen = choose_device(device)
    encoder = encoder.to(chosen).eval()
    return Run(config, encoder, untrained.to(chosen), data, recipe, head_layers)


def encoder_of(method: Method, head_layers: int = 0) -> nn.Module:
    """A method's encoder, or it with the first layers of the projection head.

    Raises:
        UserError: the method has no head with such layers.
    """
    if head_layers == 0:
        return method.encoder
    head = getattr(method, "head", None)
    if not isinstance(head, nn.Sequential):
        raise UserError(f"{type(method).__name__} has no projection head to keep layers of")
    return nn.Sequential(method.encoder, *first_layers(head, head_layers))


def judge(
    run: Run,
    device: torch.device | str,
    *,
    tasks: Sequence[str] | None = None,
    crop_area: float | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """The evaluation of a run's encoder.

    Args:
        run: what ``load_run`` gives.
        device: where its encoders are.
        tasks: see ``evaluate_encoder``; None: the quick ones, without labels those that need none.
        crop_area: the least area of the crops to fine-tune on, share of the image's; None: as in
            pre-training.
        progress: show progress bars on stderr.
        options: others of ``evaluate_encoder``.

    Raises:
        UserError: a task needs labels and there are none; or as ``evaluate_encoder`` does.
    """
    train, test = run.data.train, run.data.test
    labelled = test is not None and train.labels is not None and test.labels is not None
    if tasks is None:
        tasks = QUICK_TASKS if labelled else WITHOUT_LABELS
    train_images, train_labels = sample(train)
    test_images, test_labels = (None, None) if test is None else sample(test)
    report = evaluate_encoder(
        run.encoder,
        train_images,
        train_labels if labelled else None,
        test_images,
        test_labels if labelled else None,
        untrained=initialisations(run, device),
        tasks=tasks,
        transform=run.recipe.normalize,
        augment=run.recipe.gentle(crop_area),
        tuning_data=(train, train.labels) if train.labels is not None else None,
        device=device,
        seed=run.config.seed,
        progress=progress,
        **options,
    )
    report["setup"]["data"] = run.config.data
    if isinstance(train, ImageStore):
        report["setup"]["eval crop"] = train.crop
    if run.data.unreadable:
        report["setup"]["unreadable"] = [dataclasses.asdict(file) for file in run.data.unreadable]
    return report


def initialisations(run: Run, device: torch.device | str) -> list[nn.Module]:
    """The untrained encoder; where it is small, also with the weights of the next few seeds.

    One draw of a small network's weights can be better than another by several points.
    """
    small = sum(p.numel() for p in run.untrained.parameters()) <= SMALL_ENCODER
    if not small or run.config.encoder.startswith("python:"):
        return [run.untrained]
    shape, samples = run.data.train.shape, len(run.data.train)
    seeds = range(run.config.seed + 1, run.config.seed + INITIALISATIONS)
    configs = [run.config.model_copy(update={"seed": seed}) for seed in seeds]
    methods = [build_method(config, shape, samples=samples) for config in configs]
    others = [encoder_of(method, run.head_layers) for method in methods]
    return [run.untrained, *(other.to(device) for other in others)]


def sample(images: Images) -> tuple[Tensor, Tensor]:
    """All images and labels, or as many as fit memory, drawn by a seed that never changes.

    Returns:
        uint8 [n, C, H, W] and int64 [n], the labels −1 where there are none.
    """
    limit = min(JUDGED_IMAGES, JUDGED_BYTES // torch.Size(images.shape).numel())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    indices = order[:limit].sort().values
    labels = torch.full((len(images),), -1) if images.labels is None else images.labels
    return images[indices], labels[indices]


def reading_of(config: TrainConfig, *, progress: bool = False) -> Reading:
    """How the config has image files read."""
    return Reading(
        keep=config.keep,
        cache=config.cache,
        on_corrupt=config.on_corrupt,
        max_side=config.max_side,
        workers=config.workers,
        progress=progress,
    )


def _data(config: TrainConfig, *, progress: bool = False) -> tuple[Split, Views]:
    reading = reading_of(config, progress=progress)
    data = load_data(config.data, image_size=config.image_size, reading=reading)
    data = data.framed(config.eval_crop)
    recipe = build_recipe(
        config.views or data.recipe, data.train.shape[-1], channels_last=config.channels_last
    )
    method = METHODS[config.method]
    return data, fitted(recipe, method.views, method.more_views)


def _say_left_out(files: Sequence[Unreadable]) -> None:
    if files:
        some = "; ".join(f"{file.path}: {file.reason}" for file in files[:NAMED])
        more = f"; and {len(files) - NAMED} more" if len(files) > NAMED else ""
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        text = f"left out, being unreadable: {count}: {some}{more}"
        tqdm.write(text, file=sys.stderr)


def check_sizes(encoder: nn.Module, images: Images, recipe: Views) -> None:
    """Whether the encoder takes the views of every size.

    Raises:
        UserError: it does not.
    """
    first = torch.arange(1)
    for height, width in {view.shape[2:] for view in recipe(images[first], first, 0)}:
        feature_width(encoder, (images.shape[0], height, width))


def _fit(trainer: Trainer, recorder: Recorder) -> None:
    """Train to the end, showing and writing what happens."""
    state = recorder.restore()
    if state:
        trainer.load_state_dict(state)
    recorder.start(state)
    tqdm.write(f"writing to {recorder.path}", file=sys.stderr)
    config, device = trainer.config, trainer.ranks.device
    with tqdm(
        total=trainer.total_steps * config.batch_size,
        initial=trainer.step * config.batch_size,
        desc=config.method,
        unit=" images",
        unit_scale=True,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    ) as bar:
        clock = time.perf_counter()
        unread: list[StepResult] = []
        for result in trainer.steps():
            unread.append(result)
            bar.update(config.batch_size)
            due = recorder.due() or trainer.step == trainer.total_steps
            # Reading a loss waits for its device: a GPU is to have steps ahead of it meanwhile.
            if not due and device.type != "cpu" and len(unread) < READ_EVERY:
                continue
            losses = [result.loss for result in unread]
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            speed = round(config.batch_size * len(unread) / seconds, 1)
            memory = peak_memory_mib(device)
            for result, loss in zip(unread, losses, strict=True):
                recorder.record(
                    {
                        "step": result.step,
                        "epoch": result.epoch,
                        "loss": loss,
                        "lr": result.lr,
                        "images_per_second": speed,
                        "peak_memory_mib": round(memory, 1),
                    }
                )
            unread.clear()
            bar.set_postfix(
                epoch=f"{result.epoch}/{config.epochs}",
                loss=f"{loss:.3f}",
                memory=f"{memory:.0f} MiB",
                refresh=False,
            )
            if due:
                recorder.save(trainer.state_dict())
    recorder.close()
