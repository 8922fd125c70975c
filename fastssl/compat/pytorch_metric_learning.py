"""``pytorch_metric_learning.losses``, as of version 2.9."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.compat.positive_pairs import Pairs, positive_pair_nt_xent
from fastssl.functional import info_nce, nt_xent, sup_con
from fastssl.functional.common import loss_dtype, widened
from fastssl.ops import similarity_lse
from fastssl.reference.similarity_lse import unit_rows

__all__ = ["CrossBatchMemory", "NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]


class _LabelLoss(nn.Module):
    """A loss of embeddings and labels, with the package's call and settings.

    Args:
        temperature: positive float.
        distance: None or the package's ``CosineSimilarity``, or its ``DotProductSimilarity``.
        reducer: None or the package's default for this loss.
        embedding_regularizer, embedding_reg_weight: only None, and then without meaning.
        collect_stats: only None or False.

    Raises:
        NotImplementedError: another distance or reducer, a regulariser, statistics.
    """

    default_reducer = "MeanReducer"

    def __init__(
        self,
        temperature: float,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.normalize = _normalizes(distance)
        if reducer is not None and type(reducer).__name__ != self.default_reducer:
            raise NotImplementedError(
                f"reducer={type(reducer).__name__}: the terms are reduced as they are streamed, "
                f"by {self.default_reducer}'s rule only"
            )
        if embedding_regularizer is not None:
            raise NotImplementedError(
                "embedding_regularizer: add the regulariser's value to the loss yourself"
            )
        if collect_stats:
            raise NotImplementedError("collect_stats=True: no statistics are kept")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: shape [M, D], not normalised.
            labels: shape [M]; rows with one label are positives of one another.
            indices_tuple: only None.
            ref_emb: compare with these, shape [K, D]; None: with the embeddings themselves.
            ref_labels: shape [K]. Where they are the same tensor as ``labels``, or None, row i of
                both is one sample, and not its own positive.

        Returns:
            A float32 scalar (float64 for float64 inputs).

        Raises:
            NotImplementedError: an indices_tuple.
            ValueError: labels are missing or of another shape.
        """
        if indices_tuple is not None:
            raise NotImplementedError(
                "indices_tuple: pairs are found by label as they are streamed; mined pairs need "
                f"pytorch_metric_learning's own {type(self).__name__}"
            )
        if labels is None:
            raise ValueError("labels must be given: pairs are found by label")
        own_offset = 0 if ref_emb is None or ref_labels is None or ref_labels is labels else None
        labels = labels.to(embeddings.device)
        if ref_emb is None or ref_labels is None:
            ref_labels = labels
        ref_labels = ref_labels.to(embeddings.device)
        for name, one, name_of, of in (
            ("labels", labels, "embeddings", embeddings),
            ("ref_labels", ref_labels, "ref_emb", embeddings if ref_emb is None else ref_emb),
        ):
            if one.shape != of.shape[:1]:
                raise ValueError(
                    f"{name} must have shape [{len(of)}], one for each of {name_of}, "
                    f"not {list(one.shape)}"
                )
        return self.compare(embeddings, ref_emb, Pairs.by_label(labels, ref_labels, own_offset))

    def compare(self, x: Tensor, y: Tensor | None, pairs: Pairs) -> Tensor:
        """The loss of rows x [M, D] among columns y [K, D] (None: x).

        0 without a positive or without a negative pair, and, as in the package, with one of each.
        """
        positives, negatives = pairs.positives(), pairs.negatives()
        if not positives or not negatives or positives == negatives == 1:
            return (0 * x).sum().to(loss_dtype(x))
        # With one positive a row both losses are the same; these keep its digits.
        if y is None and set(pairs.sizes) == {(2, 2)}:
            z = x[pairs.x_ids.argsort()]
            return nt_xent(z[0::2], z[1::2], self.temperature, normalize=self.normalize)
        if pairs.own_offset is None and y is not None and set(pairs.sizes) == {(1, 1)}:
            matched = y[pairs.y_ids.argsort()[pairs.x_ids]]
            return info_nce(x, matched, temperature=self.temperature, normalize=self.normalize)
        return self._mean(x, y, pairs).to(loss_dtype(x))

    def _mean(self, x: Tensor, y: Tensor | None, pairs: Pairs) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, normalize={self.normalize}"


class NTXentLoss(_LabelLoss):
    """``NTXentLoss(temperature=0.07)(embeddings, labels)``: the mean over positive pairs.

    Each pair's denominator holds that positive and the negatives, no other positive. See
    :func:`fastssl.compat.positive_pairs.positive_pair_nt_xent`; where every label occurs twice it
    is :func:`fastssl.functional.nt_xent`. The package clamps a term that passes the range of its
    dtype (87 in float32), and stops its gradient; this does not.
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def _mean(self, x: Tensor, y: Tensor | None, pairs: Pairs) -> Tensor:
        return positive_pair_nt_xent(x, y, pairs, self.temperature, normalize=self.normalize)


class SupConLoss(_LabelLoss):
    """``SupConLoss(temperature=0.1)(embeddings, labels)``: the mean over rows with a loss above 0.

    See :func:`fastssl.functional.sup_con`. The package leaves out of its mean also the rows whose
    loss its own arithmetic rounds to 0.
    """

    default_reducer = "AvgNonZeroReducer"

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def _mean(self, x: Tensor, y: Tensor | None, pairs: Pairs) -> Tensor:
        if y is None:
            options: dict[str, Any] = {"normalize": self.normalize, "reduction": "none"}
            loss = sup_con(x, pairs.x_ids, self.temperature, **options)
        else:
            loss = self._rows(x, y, pairs)
        return loss.sum() / (loss > 0).sum().clamp(min=1)

    def _rows(self, x: Tensor, y: Tensor, pairs: Pairs) -> Tensor:
        """The loss of each row, [M]; the positives' mean by sums of the columns' classes."""
        scale, own_offset, x_ids = 1 / self.temperature, pairs.own_offset, pairs.x_ids
        lse, _ = similarity_lse(x, y, scale, normalize=self.normalize, self_offset=own_offset)
        rows, columns = widened(x), widened(y)
        if self.normalize:
            rows, columns = unit_rows(rows), unit_rows(columns)
        sums = columns.new_zeros(len(pairs.sizes), columns.shape[1])  # [classes, D]
        positives = sums.index_add(0, pairs.y_ids, columns)[x_ids]  # [M, D]
        counts = torch.bincount(pairs.y_ids, minlength=len(sums))[x_ids]
        if own_offset is not None:
            own = (torch.arange(len(x), device=x.device) + own_offset) % len(y)
            positives, counts = positives - columns[own], counts - 1
        mean = scale * (rows * positives).sum(dim=1) / counts.clamp(min=1)
        return torch.where(counts > 0, lse - mean, 0.0)


class SelfSupervisedLoss(nn.Module):
    """``SelfSupervisedLoss(loss)(embeddings, ref_emb)``: row i of both is one sample.

    Args:
        loss: one of these, or any of the package's own that takes labels.
        symmetric: each row among all others of both; False: embeddings among ref_emb only.
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        super().__init__()
        self.loss = loss
        self.symmetric = symmetric

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss; both of shape [N, D]."""
        labels = torch.arange(len(embeddings), device=embeddings.device)
        if self.symmetric:
            return self.loss(torch.cat([embeddings, ref_emb]), labels.repeat(2))
        return self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels.clone())


class CrossBatchMemory(nn.Module):
    """``CrossBatchMemory(loss, embedding_size)(embeddings, labels)``: a batch among those before.

    The batch enters the memory first and is compared with all it holds; a row's own copy there is
    not its positive (in the package it is for a batch of one).

    Args:
        loss: an :class:`NTXentLoss` or :class:`SupConLoss` of this module.
        embedding_size: D.
        memory_size: K.
        miner: only None.

    Raises:
        NotImplementedError: another loss, or a miner.

    Wang et al. 2020, https://arxiv.org/abs/1912.06798
    """

    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self, loss: nn.Module, embedding_size: int, memory_size: int = 1024, miner: Any = None
    ) -> None:
        super().__init__()
        if not isinstance(loss, _LabelLoss):
            raise NotImplementedError(
                f"loss={type(loss).__name__}: fastssl's NTXentLoss and SupConLoss are served; "
                "another loss needs pytorch_metric_learning's own CrossBatchMemory"
            )
        if miner is not None:
            raise NotImplementedError(
                f"miner={type(miner).__name__}: pairs are found by label as they are streamed"
            )
        self.loss = loss
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.reset_queue()

    def reset_queue(self) -> None:
        """Forget everything."""
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.long))
        self.has_been_filled = False
        self.queue_idx = 0

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: shape [B, D], B at most memory_size.
            labels: shape [B].
            indices_tuple: only None.
            enqueue_mask: bool, shape [B]: these rows only enter the memory, the others are only
                compared with it; None: all do both.

        Raises:
            NotImplementedError: an indices_tuple.
            ValueError: more rows than the memory holds.
        """
        if indices_tuple is not None:
            raise NotImplementedError(
                "indices_tuple: pairs are found by label as they are streamed"
            )
        labels = labels.to(embeddings.device)
        new, new_labels = embeddings, labels
        own_offset: int | None = self.queue_idx
        if enqueue_mask is not None:
            new, new_labels = embeddings[enqueue_mask], labels[enqueue_mask]
            embeddings, labels = embeddings[~enqueue_mask], labels[~enqueue_mask]
            own_offset = None
        self._enqueue(new, new_labels)
        held = self.memory_size if self.has_been_filled else self.queue_idx
        pairs = Pairs.by_label(labels, self.label_memory[:held], own_offset)
        return self.loss.compare(embeddings, self.embedding_memory[:held], pairs)

    def _enqueue(self, embeddings: Tensor, labels: Tensor) -> None:
        count, size = len(embeddings), self.memory_size
        if count > size:
            raise ValueError(f"embeddings must have at most {size} rows (memory_size), not {count}")
        self.embedding_memory = self.embedding_memory.to(embeddings)
        self.label_memory = self.label_memory.to(labels)
        places = (torch.arange(count, device=labels.device) + self.queue_idx) % size
        self.embedding_memory.index_copy_(0, places, embeddings.detach())
        self.label_memory.index_copy_(0, places, labels)
        self.has_been_filled = self.has_been_filled or self.queue_idx + count >= size
        self.queue_idx = (self.queue_idx + count) % size


def _normalizes(distance: Any) -> bool:
    """Whether the package's distance normalises; of those that are similarities by products."""
    if distance is None:
        return True
    name = type(distance).__name__
    products = name in ("CosineSimilarity", "DotProductSimilarity")
    if not products or distance.p != 2 or distance.power != 1:
        raise NotImplementedError(
            f"distance={name}: similarities are dot products; CosineSimilarity and "
            "DotProductSimilarity, with p=2 and power=1, are served"
        )
    return distance.normalize_embeddings
