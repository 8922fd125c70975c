"""The training loop: every step a function of the state and of the step's number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.data import Images, Views, ahead, mix, placed, reader, resident
from fastssl.errors import UserError
from fastssl.methods import Method
from fastssl.nn import MomentumEncoder
from fastssl.optim import build_optimizer, scaled_lr, set_lr, warmup_cosine
from fastssl.training.chunked import chunked_backward
from fastssl.training.config import TrainConfig
from fastssl.training.ranks import Ranks

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ORDER, VIEWS, NOISE = range(3)  # what a seed is for
READ_EVERY = 16  # steps of a GPU between looks at its losses, for which it is waited


@dataclass(frozen=True)
class StepResult:
    """What a step did."""

    step: int  # from 1
    epoch: int  # from 1
    lr: float
    value: Tensor  # 0-dim, on the device

    @property
    def loss(self) -> float:
        """Of the batch of all ranks; reading it waits for the device."""
        return self.value.item()


class Trainer:
    """Trains a method on images.

    Order, views and dropout are functions of (seed, epoch or step, sample), so the state between
    two steps is weights, optimiser, loss scale and the number of steps done: what
    :meth:`state_dict` gives is all that a run needs to continue bit for bit.

    Args:
        method: what is trained; moved to the ranks' device.
        images: to train on.
        recipe: from uint8 images [B, C, H, W], int64 indices [B] and a seed to a list of views. A
            ``PhotoViews`` is given those of an ``ImageStore`` in their own sizes.
        config: the settings; its data, evaluation and run directory are not looked at.
        ranks: the processes that share the work; each takes its part of every batch.

    Raises:
        UserError: the batch is larger than the data set or does not divide among the ranks, a
            chunk not into ``bn_splits``; a name in the config is unknown; the method needs labels
            and there are none.
    """

    def __init__(
        self,
        method: Method,
        images: Images,
        recipe: Views | Callable[[Tensor, Tensor, int], list[Tensor]],
        config: TrainConfig,
        ranks: Ranks,
    ) -> None:
        if config.batch_size > len(images):
            raise UserError(
                f"batch_size {config.batch_size} is larger than the data set: "
                f"{len(images)} training images"
            )
        if config.batch_size % ranks.world_size:
            raise UserError(
                f"batch_size {config.batch_size} does not divide among {ranks.world_size} ranks"
            )
        rows = config.batch_size // ranks.world_size
        chunk = min(config.chunk_size or rows, rows)
        if any(size % (config.bn_splits or 1) for size in (chunk, rows % chunk)):
            raise UserError(
                f"bn_splits {config.bn_splits} must divide every chunk: "
                f"{rows} images a rank in chunks of {chunk}"
            )
        if "labels" in method.needs and images.labels is None:
            raise UserError(f"{config.method} needs labels, which these images do not have")
        self.images = resident(images, ranks.device, config.resident)
        self._read = reader(self.images, recipe, pin=ranks.device.type == "cuda")
        self.recipe = recipe
        self.config = config
        self.ranks = ranks
        self.step = 0
        self._unread: list[tuple[int, Tensor]] = []  # steps and losses nobody has looked at
        self.steps_per_epoch = len(images) // config.batch_size  # a last, smaller batch is left out
        self.total_steps = config.epochs * self.steps_per_epoch

        memory_format = torch.channels_last if config.channels_last else torch.preserve_format
        self.method = method.to(ranks.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.memory_format = memory_format
        self.optimizer = build_optimizer(
            config.optimizer,
            method,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            constant_lr=method.constant_lr,
        )
        self.peak_lr = scaled_lr(config.lr, config.batch_size, config.lr_scaling)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.autocast == "fp16")
        if config.compile:
            method.encoder.compile()
            for module in method.modules():
                if isinstance(module, MomentumEncoder):
                    module.module.compile()
        self.embed: nn.Module = Embed(method, self._autocast)
        self.beside = [
            p for name in method.in_loss for p in method.get_submodule(name).parameters()
        ]
        if ranks.world_size > 1:
            share_state(method)
            method.group, method.ring = True, config.ring
            self.embed = DistributedDataParallel(self.embed)

    def steps(self) -> Iterator[StepResult]:
        """Train from the present step to the last, giving a result after each.

        On a GPU nothing waits for it (but a fp16 loss scale): steps are queued ahead of it, and a
        loss that is not finite is found up to READ_EVERY steps later, before any state is given.

        Raises:
            UserError: the loss is no longer finite, or an image cannot be read.
        """
        self.method.train()
        steps = range(self.step, self.total_steps)
        with closing(ahead(self._load, steps, depth=self.config.prefetch)) as batches:
            for indices, images in batches:
                yield self._train_step(indices, images)
        self._look_at_losses()

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue after the present step: tensors, numbers and text.

        Raises:
            UserError: a loss was not finite.
        """
        self._look_at_losses()
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state another trainer of the same settings had.

        Raises:
            UserError: it is of another model or optimiser.
        """
        try:
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the checkpoint is not of this model: {reason}") from error

    def _load(self, step: int) -> tuple[Tensor, Any]:
        """Indices [B] and images, uint8, of this rank's part of a step's batch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(mix(self.config.seed, ORDER, epoch))
        order = torch.randperm(len(self.images), generator=generator)
        size = self.config.batch_size
        batch = order[position * size : (position + 1) * size]
        indices = batch[self.ranks.rank :: self.ranks.world_size]
        return indices, self._read(indices)

    def _train_step(self, indices: Tensor, images: Any) -> StepResult:
        config, device = self.config, self.ranks.device
        epoch = self.step // self.steps_per_epoch
        images = placed(images, device)
        numbers = indices.to(images.device, non_blocking=True)
        views = [
            view.to(device, non_blocking=True)
            for view in self.recipe(images, numbers, mix(config.seed, VIEWS, epoch))
        ]
        if config.channels_last:
            views = [view.contiguous(memory_format=self.memory_format) for view in views]
        warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        lr = self.peak_lr * warmup_cosine(self.step, self.total_steps, warmup_steps)
        set_lr(self.optimizer, lr, constant=self.peak_lr)
        torch.manual_seed(mix(config.seed, NOISE, self.step, self.ranks.rank))  # for dropout

        self.method.before_step(self.step / self.total_steps, self.step / self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            targets = self.method.targets(*views, chunk_size=config.chunk_size)
        samples = self._samples(indices)
        seen: list[Tensor] = []

        def loss_of(*embeddings: Tensor) -> Tensor:
            seen.extend(z.detach() for z in embeddings)
            return self.method.loss(*embeddings, *targets, **samples)

        loss = chunked_backward(
            self.embed, loss_of, views, config.chunk_size, scale=self.scaler.scale
        )
        if self.ranks.world_size > 1:
            average_gradients(self.beside)
        self._unread.append((self.step + 1, loss))
        if device.type == "cpu" or len(self._unread) == READ_EVERY:
            self._look_at_losses()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step(*seen, *targets, **samples)
        self.step += 1
        return StepResult(self.step, epoch + 1, lr, loss)

    def _look_at_losses(self) -> None:
        unread, self._unread = self._unread, []
        values = torch.stack([loss for _, loss in unread]).tolist() if unread else []
        for (step, _), value in zip(unread, values, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"the loss is {value} at step {step}: try a smaller lr or more warm-up"
                )

    def _samples(self, indices: Tensor) -> dict[str, Tensor]:
        """What the method's loss asks for beside embeddings."""
        what = {"indices": indices}
        if self.images.labels is not None:
            what["labels"] = self.images.labels[indices]
        return {
            name: what[name].to(self.ranks.device, non_blocking=True) for name in self.method.needs
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        """The precision of the encoders."""
        dtype = DTYPES.get(self.config.autocast)
        return torch.autocast(self.ranks.device.type, dtype, enabled=dtype is not None)


class Embed(nn.Module):
    """A method's embedding as a module of its own, for DistributedDataParallel to wrap.

    It holds the parts that learn by it: memories, momentum encoders and what only the loss uses are
    no business of its reducer, nor of the chunks' buffers.
    """

    def __init__(self, method: Method, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            module
            for name, module in method.named_children()
            if name not in method.in_loss and any(p.requires_grad for p in module.parameters())
        )
        self._embed = method.embed
        self._autocast = autocast

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        with self._autocast():
            return tuple(self._embed(*views))


def share_state(module: nn.Module) -> None:
    """Give every rank the first one's parameters and buffers, those that do not learn as well."""
    for tensor in module.state_dict().values():
        first = tensor.contiguous()
        dist.broadcast(first, 0)
        tensor.copy_(first)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every rank the mean over ranks, as DistributedDataParallel does for what it wraps."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
