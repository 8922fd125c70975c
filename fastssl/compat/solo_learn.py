"""solo-learn's loss functions (``solo.losses``), as of version 1.0.6."""

from __future__ import annotations

from torch import Tensor

from fastssl.functional import info_nce, multi_view_nt_xent

__all__ = ["mocov2plus_loss_func", "nnclr_loss_func", "simclr_loss_func"]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """NT-Xent over any number of views; see :func:`fastssl.functional.multi_view_nt_xent`.

    Args:
        z: shape [M, D], not normalised.
        indexes: shape [M]: rows with the same number are positives of one another. A row alone
            does not count, where solo-learn's loss is infinite.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each. All rows with
    one number are then on one rank: classes across ranks, which solo-learn takes, are an error.
    """
    return multi_view_nt_xent(z, indexes, temperature, group=True)


def mocov2plus_loss_func(
    query: Tensor,  # [N, D]
    key: Tensor,  # [N, D]
    queue: Tensor,  # [D, K]
    temperature: float = 0.1,
) -> Tensor:
    """InfoNCE with a queue of negatives; see :func:`fastssl.functional.info_nce`.

    Args:
        query, key: shape [N, D], normalised; row i of both belongs together.
        queue: shape [D, K], a negative in each column, normalised. Columns are copied into rows,
            unless they lie so: a queue made as ``torch.empty(K, D).T`` costs no copy.
        temperature: positive float.
    """
    key, queue = key.to(query.dtype), queue.to(query.dtype)
    return info_nce(query, key, queue.T, temperature, normalize=False)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE of neighbours among the batch's predictions; see :func:`fastssl.functional.info_nce`.

    Args:
        nn: the queue's nearest neighbour of each sample of one view, shape [N, D].
        p: predictions for the other view, same shape; neither need be normalised.
        temperature: positive float.

    Over the batch of all ranks where there are several, its mean the same on each.
    """
    return info_nce(nn, p, temperature=temperature, group=True)
