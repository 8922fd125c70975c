"""SwAV: a view's assignment to prototypes is told from another view."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastssl.distributed import share
from fastssl.functional import swav_loss
from fastssl.methods.base import Method, features
from fastssl.nn import MemoryQueue, Prototypes


class SwAV(Method):
    """Unsupervised Learning of Visual Features by Contrasting Cluster Assignments.

    ``z = g(f(x))`` of two large crops and any number of small ones, ``s = z/‖z‖·C``; Sinkhorn makes
    codes of the large crops' s, which every other crop is to predict.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F], of any size where crops differ.
        head: g, any module from [B, F] to [B, D]; "mlp-bn" in the paper.
        dim: D.
        prototypes: how many there are in C.
        temperature: of the predictions, positive.
        epsilon: of Sinkhorn, positive.
        iterations: of Sinkhorn.
        queue_size: earlier z of either large crop that take part in Sinkhorn, for batches smaller
            than the prototypes are many; None: none.
        queue_epoch: the first epoch, from 0, in which they do. They are kept from the first step.
        freeze_epochs: how long C stays as it is, at first.

    Caron et al. 2020, https://arxiv.org/abs/2006.09882
    """

    more_views: ClassVar[bool] = True
    in_loss: ClassVar[tuple[str, ...]] = ("prototypes",)
    queues: list[MemoryQueue]  # of either large crop

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int | None = None,
        queue_epoch: int = 15,
        freeze_epochs: float = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.prototypes = Prototypes(dim, prototypes)
        self.queues = nn.ModuleList()  # type: ignore[assignment]
        if queue_size:
            self.queues += [MemoryQueue(queue_size, dim) for _ in range(2)]
        self.queue_epoch = queue_epoch
        self.freeze_epochs = freeze_epochs
        self.queues_serve = False
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations

    def before_step(self, progress: float, epoch: float) -> None:
        """Whether the prototypes learn already, and the queues serve."""
        self.prototypes.frozen = epoch < self.freeze_epochs
        self.queues_serve = len(self.queues) > 0 and epoch >= self.queue_epoch

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of every crop, [N, D] each, the two large ones first."""
        return self.head(features(self.encoder, views)).chunk(len(views))

    def loss(self, *z: Tensor) -> Tensor:
        """Swapped prediction of z, [N, D] each; a float32 scalar."""
        return swav_loss(
            [self.prototypes(crop) for crop in z],
            queue_scores=self._queue_scores() if self.queues_serve else None,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            group=self.group,
        )

    @torch.no_grad()
    def _queue_scores(self) -> list[Tensor]:
        """With the present prototypes; each rank has its share."""
        return [self.prototypes(share(queue.rows, self.group)) for queue in self.queues]

    def after_step(self, *z: Tensor) -> None:
        """Prototypes are unit vectors again; the large crops' z enter the queues."""
        self.prototypes.normalize_()
        for queue, crop in zip(self.queues, z, strict=False):
            queue.enqueue(crop, group=self.group)
