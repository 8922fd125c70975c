"""Batch norm that tells a key nothing of its query: over groups of rows, in a shuffled order."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastssl.distributed import Group, Ranks, agree


class SplitBatchNorm(_BatchNorm):
    """Batch norm that normalises each of S groups of rows by statistics of its own.

    One device acts as S. Rows i, i + S, i + 2S … are a group; running statistics move by the mean
    over groups. In evaluation mode it is plain batch norm.

    Args:
        num_features: C.
        splits: S.
        eps, momentum: as ``torch.nn.BatchNorm2d`` has them.

    Shape:
        [B, C, ...] to the same.

    Raises:
        ValueError: in training, B is no multiple of S, or B = S.

    As in the CIFAR notebook of MoCo, He et al. 2020, https://arxiv.org/abs/1911.05722
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self, num_features: int, splits: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(num_features, eps, momentum)
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        splits, (rows, channels, *places) = self.splits, x.shape
        if rows % splits:
            raise ValueError(f"x must have a multiple of {splits} rows (splits), not {rows}")
        mean, var = self.running_mean.repeat(splits), self.running_var.repeat(splits)
        weight, bias = (None if p is None else p.repeat(splits) for p in (self.weight, self.bias))
        grouped = x.reshape(rows // splits, splits * channels, *places)
        y = F.batch_norm(grouped, mean, var, weight, bias, True, self.momentum, self.eps)
        self.running_mean.copy_(mean.view(splits, channels).mean(0))
        self.running_var.copy_(var.view(splits, channels).mean(0))
        self.num_batches_tracked.add_(1)
        return y.reshape(x.shape)

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # any number of places

    def extra_repr(self) -> str:
        return f"{self.num_features}, splits={self.splits}, eps={self.eps}"


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """The module with a :class:`SplitBatchNorm` in place of each batch norm, with its parameters
    and statistics; changed in place where it is not a batch norm itself.

    Raises:
        ValueError: a batch norm without exponential running averages.
    """
    if not isinstance(module, _BatchNorm):
        for name, child in module.named_children():
            setattr(module, name, split_batch_norm(child, splits))
        return module
    if module.momentum is None or module.running_mean is None:
        raise ValueError(f"{module} has no exponential running averages, and cannot be split")
    norm = SplitBatchNorm(module.num_features, splits, module.eps, module.momentum)
    norm.weight, norm.bias = module.weight, module.bias
    for name, buffer in module.named_buffers():
        setattr(norm, name, buffer)
    return norm.train(module.training)


@torch.no_grad()
def shuffled(encode: Callable[[Tensor], Tensor], x: Tensor, group: Group = None) -> Tensor:
    """``encode(x)``, the rows of x encoded in a random order, and put back into their own.

    Where ``encode`` normalises a batch (a chunk, a split, a rank's share) by its own statistics,
    these would let a key be told by the company it shares with its query.

    Args:
        encode: from [B, ...] to [B, D].
        x: shape [B, ...].
        group: shuffle over all its ranks; each encodes as many rows as it brings.

    Returns:
        Shape [B, D], without a graph.

    MoCo, He et al. 2020, section 3.3, https://arxiv.org/abs/1911.05722
    """
    ranks = agree(group, False, lambda x: None, x=x)
    rows = ranks.gather(x)
    order = torch.randperm(len(rows), device=x.device)
    start = 0
    if isinstance(ranks, Ranks):
        dist.broadcast(order, group=ranks.group, group_src=0)
        start = sum(ranks.samples[: dist.get_rank(ranks.group)])
    mine = slice(start, start + len(x))
    encoded = ranks.gather(encode(rows[order[mine]]))
    return encoded[order.argsort()[mine]]
