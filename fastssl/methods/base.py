"""What the trainer asks of a method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastssl.distributed import Group


class Method(nn.Module):
    """An encoder, and a loss over embeddings of several views.

    A step of a trainer, or of a loop of one's own::

        method.before_step(step / total_steps, step / steps_per_epoch)
        z = [*method.embed(*views), *method.targets(*views)]
        method.loss(*z, **samples).backward()
        optimizer.step()
        method.after_step(*z, **samples)

    The parts stand apart so that a trainer may embed a large batch in chunks and still take the
    loss, and its exact gradient, over the whole batch. ``samples`` holds what ``needs`` names:
    "labels" or "indices" of the samples, int64 [N].
    """

    views: ClassVar[int] = 2  # of each image
    more_views: ClassVar[bool] = False  # takes further views, which may be of other sizes
    in_loss: ClassVar[tuple[str, ...]] = ()  # modules that learn by the loss, not in embed
    constant_lr: ClassVar[tuple[str, ...]] = ()  # modules whose learning rate stays at its peak
    needs: ClassVar[tuple[str, ...]] = ()
    group: Group = None  # the ranks that share a batch; True: all
    ring: bool = False  # their embeddings go around a ring, for less memory than gathering them

    encoder: nn.Module  # what downstream tasks use

    @property
    def over(self) -> dict[str, Any]:
        """What a loss is told about the ranks."""
        return {"group": self.group, "ring": self.ring}

    def before_step(self, progress: float, epoch: float) -> None:
        """Called for what changes with time, with how much of training is done.

        Args:
            progress: the share, 0 to 1.
            epoch: passes over the images: 2.5 is the middle of the third.
        """

    def embed(self, *views: Any) -> Sequence[Tensor]:
        """From V views, [N, C, H, W] each, to embeddings that learn, [N, D] each: rows
        independent."""
        raise NotImplementedError

    def targets(self, *views: Any, **options: Any) -> Sequence[Tensor]:
        """From the same views to embeddings that do not learn, such as keys; none by default.

        ``chunk_size``, the only option, is how many rows are embedded at a time; None: all.
        """
        return ()

    def loss(self, *embeddings: Any, **samples: Any) -> Tensor:
        """From embeddings and targets of the whole batch, [N, D] each, to a scalar."""
        raise NotImplementedError

    def after_step(self, *embeddings: Any, **samples: Any) -> None:
        """Called after the optimiser with what the loss had: keys enter queues, averages follow."""

    def forward(self, *views: Any, **samples: Any) -> Tensor:
        """The loss of a batch of views."""
        return self.loss(*self.embed(*views), *self.targets(*views), **samples)


def features(encoder: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """``f(x)`` of V views, [N, C, H, W] each, as [V·N, F]; those of one size pass together, so that
    batch norm sees them together."""
    passes = groupby(views, key=lambda x: x.shape[2:])
    return torch.cat([encoder(torch.cat(list(alike))) for _, alike in passes])
