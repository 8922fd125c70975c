"""DeepCluster-v2: images are told from their clusters, which are found anew every epoch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fastssl.distributed import share
from fastssl.errors import UserError
from fastssl.functional import cluster_loss, spherical_k_means
from fastssl.methods.base import Method, features
from fastssl.nn import MemoryBank
from fastssl.ops import similarity_topk


class DeepCluster(Method):
    """Deep Clustering for Unsupervised Learning of Visual Features, as SwAV's authors improved it.

    ``z = g(f(x))`` of two large crops and any number of small ones. Before each epoch spherical
    k-means clusters what the memory holds, the last z of every image, several times over; then
    every crop's cosines with the centroids are to tell the cluster of its image.

    Nothing is learnt in the first epoch, which fills the memory.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F], of any size where crops differ.
        head: g, any module from [B, F] to [B, D]; "mlp-bn" in the paper.
        num_samples: how many images there are.
        dim: D.
        prototypes: K, the centroids of a clustering.
        clusterings: how many, each from other centroids; of the two large crops' z by turns.
        temperature: positive.
        iterations: of k-means.

    Raises:
        UserError: there are fewer images than prototypes.

    Caron et al. 2018, https://arxiv.org/abs/1807.05520; 2020, its appendix,
    https://arxiv.org/abs/2006.09882
    """

    more_views: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("indices",)
    banks: list[MemoryBank]  # of either large crop
    labels: Tensor
    centroids: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        num_samples: int,
        *,
        dim: int = 128,
        prototypes: int = 3000,
        clusterings: int = 3,
        temperature: float = 0.1,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        if num_samples < prototypes:
            raise UserError(f"prototypes: {num_samples} images do not make {prototypes} clusters")
        self.encoder = encoder
        self.head = head
        banks = [MemoryBank(num_samples, dim, momentum=0) for _ in range(2)]
        self.banks = nn.ModuleList(banks)  # type: ignore[assignment]
        for bank in banks:
            bank.rows.zero_()  # not yet seen
        self.register_buffer("centroids", torch.zeros(clusterings, prototypes, dim))
        self.register_buffer("labels", torch.full((clusterings, num_samples), -1))
        self.temperature = temperature
        self.iterations = iterations

    def before_step(self, progress: float, epoch: float) -> None:
        """At the beginning of an epoch, the clusters."""
        if epoch == int(epoch):
            draw = torch.Generator().manual_seed(int(epoch))  # the same on every rank
            for i, (centroids, labels) in enumerate(zip(self.centroids, self.labels, strict=True)):
                self._cluster(self.banks[i % 2].rows, centroids, labels, draw)

    @torch.no_grad()
    def _cluster(
        self, rows: Tensor, centroids: Tensor, labels: Tensor, draw: torch.Generator
    ) -> None:
        """Cluster the rows of images seen so far, if these are enough."""
        (seen,) = rows.any(dim=1).nonzero(as_tuple=True)
        if len(seen) < len(centroids):
            return
        rows = rows[seen]
        first = torch.randperm(len(seen), generator=draw)[: len(centroids)]
        found = spherical_k_means(
            share(rows, self.group), rows[first.to(rows.device)], self.iterations, group=self.group
        )
        centroids.copy_(found)
        labels[seen] = similarity_topk(rows, found, 1)[1][:, 0]

    def embed(self, *views: Tensor) -> tuple[Tensor, ...]:
        """z of every crop, [N, D] each, the two large ones first."""
        return self.head(features(self.encoder, views)).chunk(len(views))

    def loss(self, *z: Tensor, indices: Tensor) -> Tensor:
        """The mean over clusterings of the cross entropy of z, [N, D] each; a float32 scalar.

        Args:
            z: the embeddings.
            indices: int64 [N], all different: which images they are of.
        """
        rows = torch.cat(z).to(self.centroids.dtype)  # [V·N, D]
        labels = self.labels[:, indices].repeat(1, len(z))  # [clusterings, V·N]
        losses = [
            cluster_loss(rows, *clustering, self.temperature, group=self.group)
            for clustering in zip(self.centroids, labels, strict=True)
        ]
        return torch.stack(losses).mean()

    def after_step(self, *z: Tensor, indices: Tensor) -> None:
        """The images' rows become the large crops' z."""
        for bank, crop in zip(self.banks, z, strict=False):
            bank.update(indices, crop, group=self.group)
