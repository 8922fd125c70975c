"""A small training loop for classifiers: what fine-tuning and distillation share."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastssl.data import Images, Views, ahead, mix, placed, reader
from fastssl.errors import UserError
from fastssl.evaluation.features import as_float, check_images, evaluating, extract_features
from fastssl.evaluation.progress import Bar
from fastssl.nn import SplitBatchNorm
from fastssl.optim import build_optimizer, set_lr, warmup_cosine

ORDER, VIEWS, NOISE = range(3)  # what a seed is for

Transform = Callable[[Tensor], Tensor]  # float32 in [0, 1] to the encoder's input
# (uint8 images, indices, seed) to its input, or to a list of which the first is
Augment = Views | Callable[[Tensor, Tensor, int], Tensor | list[Tensor]]


@dataclass(frozen=True)
class Fitting:
    """How a classifier is trained; the defaults fine-tune, as SimCLR without weight decay.

    Args:
        epochs: passes over the images.
        batch_size: images a step, 2 or more; where there are fewer, all of them.
        optimizer: "sgd", "adamw", "lars", …; see ``fastssl.optim.OPTIMIZERS``.
        lr: the peak learning rate, not scaled by the batch; half a cosine brings it to 0.
        warmup_epochs: epochs of rising learning rate before.
        momentum: of SGD and LARS; of AdamW, β₁.
        weight_decay: not of biases and norms.
        freeze_batch_norm: False: batch norm normalises by the batch, and its running statistics
            follow, as in SimCLR. True: it normalises by the running statistics, which stay those of
            pre-training; its scale and shift learn all the same. Smaller rates serve then.

    Raises:
        UserError: a number out of its range.
    """

    epochs: int = 60
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.05
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    freeze_batch_norm: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "lr": (self.lr > 0, "positive"),
            "warmup_epochs": (self.warmup_epochs >= 0, "0 or more"),
            "momentum": (0 <= self.momentum < 1, "at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
        }
        for name, (fine, words) in allowed.items():
            if not fine:
                raise UserError(f"{name} must be {words}, not {getattr(self, name)}")


def classifier(encoder: nn.Module, classes: int, example: Tensor) -> nn.Sequential:
    """A copy of an encoder with a linear layer on top, all of it set to learn.

    Args:
        encoder: maps [B, C, H, W] to [B, F] or to what flattens to it; it stays as it is.
        classes: outputs of the layer, whose weights begin at 0: no seed is needed, and the first
            step leaves the encoder alone.
        example: inputs of the encoder, [B, C, H, W], B >= 1, to learn F from.

    Returns:
        ``encoder``, ``flatten`` and ``linear`` in sequence, to logits [B, classes].
    """
    with evaluating(encoder), torch.no_grad():
        features = encoder(example).flatten(1)
    linear = nn.utils.skip_init(  # and leave the generator alone
        nn.Linear, features.shape[1], classes, device=features.device, dtype=features.dtype
    )
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    parts = {"encoder": copy.deepcopy(encoder), "flatten": nn.Flatten(), "linear": linear}
    model = nn.Sequential(OrderedDict(parts)).requires_grad_()
    for module in model.modules():
        if isinstance(module, SplitBatchNorm):
            module.splits = 1  # plain: there are no queries here that keys could tell
    return model


def example_of(
    images: Tensor | Images, transform: Transform | None, device: torch.device | str
) -> Tensor:
    """The first image as the encoder takes it, [1, C, H, W].

    Raises:
        ValueError: images of a wrong shape or dtype, or none at all.
    """
    if isinstance(images, Tensor):
        check_images(images)
    x = as_float(images[torch.zeros(1, dtype=torch.int64)].to(device))
    return x if transform is None else transform(x)


def fit(
    model: nn.Module,
    images: Tensor | Images,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    fitting: Fitting,
    *,
    rows: Tensor | None = None,
    transform: Transform | None = None,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    title: str = "fit",
    progress: bool = True,
) -> None:
    """Train a classifier in place, and leave it in evaluation mode.

    Batches are drawn anew each epoch; rows that do not fill one wait for the next epoch. On a CPU
    the same seed gives the same weights bit for bit, and torch's global generators are left alone.
    The next batch is read, in a thread, while one is used.

    Args:
        model: from inputs to logits [B, C], on ``device``.
        images: uint8 [N, C, H, W] (read as k/255) or floating in [0, 1]; or ``Images``, which are
            read batch by batch.
        loss: from logits [B, C], the inputs they come from and their rows in ``images``, int64 [B]
            on the CPU, to a scalar.
        fitting: the settings.
        rows: int64, those of the images to train on; None: all.
        transform: as for ``extract_features``.
        augment: in place of ``transform``: random views of a batch, such as a ``Recipe``'s;
            ``PhotoViews`` are given those of an ``ImageStore`` in their own sizes.
        device: where the model is.
        seed: of the batches, the views and dropout.
        title: of the progress bar.
        progress: show it on stderr.

    Raises:
        UserError: the loss is no longer finite.
    """
    rows = torch.arange(len(images)) if rows is None else rows
    size = min(fitting.batch_size, len(rows))
    steps = len(rows) // size  # an epoch
    optimizer = build_optimizer(
        fitting.optimizer,
        model,
        lr=fitting.lr,
        momentum=fitting.momentum,
        weight_decay=fitting.weight_decay,
    )
    total, warmup = fitting.epochs * steps, round(fitting.warmup_epochs * steps)
    model.train()
    for module in model.modules():
        if fitting.freeze_batch_norm and isinstance(module, _BatchNorm):
            module.eval()
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    read = images.__getitem__ if augment is None else reader(images, augment, pin=bool(cuda))

    def load(step: int) -> tuple[Tensor, Any]:  # indices and images
        epoch, position = divmod(step, steps)
        generator = torch.Generator().manual_seed(mix(seed, ORDER, epoch))
        order = torch.randperm(len(rows), generator=generator)
        chosen = rows[order[position * size : (position + 1) * size]]
        return chosen, read(chosen)

    with torch.random.fork_rng(cuda), Bar(title, total, progress) as advance:
        torch.manual_seed(mix(seed, NOISE))
        for step, (chosen, loaded) in enumerate(ahead(load, range(total))):
            batch: Any = placed(loaded, device)
            epoch = step // steps
            if augment is not None:
                numbers = chosen.to(batch.device, non_blocking=True)
                views = augment(batch, numbers, mix(seed, VIEWS, epoch))
                x = (views[0] if isinstance(views, list) else views).to(device)
            else:
                x = as_float(batch) if transform is None else transform(as_float(batch))
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)  # convolutions' fastest
            set_lr(optimizer, fitting.lr * warmup_cosine(step, total, warmup))
            optimizer.zero_grad(set_to_none=True)
            value = loss(model(x), x, chosen)
            value.backward()
            optimizer.step()
            advance(1)
            last = (step + 1) % steps == 0  # of an epoch: a GPU need not wait each step
            if last and not torch.isfinite(value.detach()):
                raise UserError(f"the loss is {value.item()} in epoch {epoch + 1}: a smaller lr?")
    model.eval()


def accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    transform: Transform | None = None,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> float:
    """The share of images, [Q, C, H, W], whose largest logit is that of their label, 0 to 1."""
    logits = extract_features(
        model, images, transform=transform, batch_size=batch_size, device=device
    )
    return (logits.argmax(1) == labels.cpu()).float().mean().item()
