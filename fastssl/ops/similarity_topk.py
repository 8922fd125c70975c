"""``similarity_topk``: the nearest entries of a bank, without the matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import check_rows
from fastssl.ops.library import define

BLOCK = 1 << 24  # similarities that the fallback writes at a time


def similarity_topk(
    queries: Tensor,  # [Q, D]
    bank: Tensor,  # [K, D]
    k: int,
    *,
    normalize: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k entries of a bank that are most similar to each query.

    ``values_i, indices_i = top-k over j of queries_i·bank_j``, from a matrix that is never
    written: memory is that of the result and of a few blocks. Equal similarities are ordered by
    index, smaller first, so the result is the same at any number of threads. There is no
    gradient: inputs that require one count as detached.

    Args:
        queries: shape [Q, D]; float32, bfloat16, float16 (float64 is served by the reference).
        bank: shape [K, D], dtype and device of ``queries``.
        k: how many, 1 to K; on CUDA at most 1,024.
        normalize: take cosine similarities. Rows shorter than 1e-12 count as zero vectors, and on
            CUDA those longer than 1e18 as NaN.

    Returns:
        ``(values, indices)``, each [Q, k], the largest value first: float32 (float64 for float64
        inputs), and int64. Similarities are accumulated in float32. A NaN similarity counts as
        larger than any number, as in ``torch.topk``; a NaN row of the bank is therefore every
        query's first neighbour, and a NaN query's neighbours are the first k of the bank.

    Raises:
        TypeError: an input is not a floating-point tensor, their dtypes differ, ``k`` is no int.
        ValueError: wrong number of dimensions, widths or devices that differ, no rows, no
            features, 2^31 or more rows, k outside [1, K], or more than CUDA's limit.
        BackendError: a backend was asked for that cannot serve these tensors.
    """
    _check(queries, bank, k)
    queries, bank = queries.detach(), bank.detach()
    backend = backends.select("similarity_topk", queries.device.type)
    if backend == "reference" or queries.dtype == torch.float64:
        return _reference_fwd(queries, bank, k, normalize)
    return backends.raw("similarity_topk_fwd", backend)(queries, bank, k, normalize)


def _check(queries, bank, k) -> None:
    check_rows(queries=queries, bank=bank)
    for name, tensor in (("queries", queries), ("bank", bank)):
        if tensor.shape[0] >= 2**31:
            raise ValueError(f"{name} must have fewer than 2^31 rows, not {tensor.shape[0]}")
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise TypeError(f"k must be an int, not {type(k).__name__}")
    if not 1 <= k <= bank.shape[0]:
        raise ValueError(f"k must lie in [1, {bank.shape[0]}], the rows of bank, not {k}")


def _fwd_fake(queries, bank, k, normalize):
    shape = (queries.shape[0], k)
    return (
        queries.new_empty(shape, dtype=torch.float32),
        queries.new_empty(shape, dtype=torch.int64),
    )


def _reference_fwd(queries, bank, k, normalize):
    """The reference over as many queries at a time as keep its matrix small."""
    step = max(1, BLOCK // bank.shape[0])
    parts = [
        references.similarity_topk(rows, bank, k, normalize=normalize)
        for rows in queries.split(step)
    ]
    values, indices = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(indices)


define(
    "similarity_topk_fwd(Tensor queries, Tensor bank, SymInt k, bool normalize) "
    "-> (Tensor, Tensor)",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="similarity_topk",
)
backends.register("similarity_topk", "native", "triton")
