"""Who else computes NT-Xent: the providers beside ``fastssl``.

Each takes two views z0, z1 [N, D] and a temperature and returns the mean over the 2N rows. A peer
that is not installed is skipped by name; one that would need absurd memory, with the reason.
Install them with ``pip install --no-deps lightly pytorch-metric-learning info-nce-pytorch``, those
with kernels for CUDA with ``pip install --no-deps memeff cut-cross-entropy``, and what augments
with ``pip install --no-deps kornia kornia_rs triton-augment``.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import Case, Provider, Skip

Loss = Callable[[Tensor, Tensor], Tensor]


def eager_nt_xent(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """NT-Xent as one writes it in five lines: one product, the diagonal masked in place."""
    n = z0.shape[0]
    z = F.normalize(torch.cat([z0, z1]), dim=1)  # [M, D]
    logits = z @ z.T / temperature  # [M, M]
    logits.fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


def lightly_formula(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """The arithmetic of lightly 1.6's NTXentLoss without a bank, for machines that lack lightly."""
    n = z0.shape[0]
    z0, z1 = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    diagonal = torch.eye(n, device=z0.device, dtype=torch.bool)
    logits_00 = torch.einsum("nc,mc->nm", z0, z0) / temperature
    logits_01 = torch.einsum("nc,mc->nm", z0, z1) / temperature
    logits_10 = torch.einsum("nc,mc->nm", z1, z0) / temperature
    logits_11 = torch.einsum("nc,mc->nm", z1, z1) / temperature
    logits_00 = logits_00[~diagonal].view(n, -1)
    logits_11 = logits_11[~diagonal].view(n, -1)
    logits = torch.cat(
        [torch.cat([logits_01, logits_00], dim=1), torch.cat([logits_10, logits_11], dim=1)]
    )
    labels = torch.arange(n, device=z0.device).repeat(2)
    return F.cross_entropy(logits, labels)


def _fastssl(case: Case) -> Loss:
    from fastssl.functional import nt_xent

    return functools.partial(nt_xent, temperature=case.temperature)


def _reference(case: Case) -> Loss:
    import fastssl
    from fastssl.functional import nt_xent

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        with fastssl.use_backend("reference"):
            return nt_xent(z0, z1, case.temperature)

    return loss


def _eager(case: Case) -> Loss:
    return functools.partial(eager_nt_xent, temperature=case.temperature)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` by inductor, for one shape."""
    torch._dynamo.reset()  # a recompilation limit is no part of the comparison
    # The rehearsal on a machine without a GPU has no use for half a minute of inductor.
    backend = os.environ.get("FASTSSL_BENCH_COMPILER", "inductor")
    return torch.compile(function, dynamic=False, backend=backend)


def _compiled(case: Case) -> Loss:
    # A fresh closure: the temperature is then a constant of the compiled code.
    return compiled(lambda z0, z1: eager_nt_xent(z0, z1, case.temperature))


def _lightly(case: Case) -> Loss:
    module = _peer("lightly.loss", "lightly")
    return module.NTXentLoss(temperature=case.temperature)


def _lightly_formula(case: Case) -> Loss:
    return functools.partial(lightly_formula, temperature=case.temperature)


def _metric_learning(case: Case) -> Loss:
    losses = _peer("pytorch_metric_learning.losses", "pytorch-metric-learning")
    loss = losses.NTXentLoss(temperature=case.temperature)
    labels = torch.arange(case.rows // 2, device=case.device).repeat(2)
    return lambda z0, z1: loss(torch.cat([z0, z1]), labels)


def _info_nce(case: Case) -> Loss:
    module = _peer("info_nce", "info-nce-pytorch")
    loss = module.InfoNCE(temperature=case.temperature, negative_mode="paired")
    m, n = case.rows, case.rows // 2
    if n < 2:
        raise Skip("needs at least one negative")
    # Its in-batch mode is another loss (one direction, cross-view negatives only). NT-Xent takes
    # explicit negatives: for every row all others but itself and its pair.
    allowed = torch.ones(m, m, dtype=torch.bool)
    i = torch.arange(m)
    allowed[i, i] = allowed[i, (i + n) % m] = False
    negatives = allowed.nonzero()[:, 1].view(m, m - 2).to(case.device)

    def function(z0: Tensor, z1: Tensor) -> Tensor:
        z = torch.cat([z0, z1])
        return loss(z, torch.cat([z1, z0]), z[negatives])

    return function


def _memeff(case: Case) -> Loss:
    """Its loss of queries to documents with queries as further negatives, once each way: the same
    sums. ``margin`` 2 drops no negative; ``stable`` would scale gradients."""
    module = _cuda_peer("memeff", "memeff", case)
    loss = module.MemoryEfficientQwen3Loss(
        temperature=case.temperature, margin=2.0, use_qq_negatives=True, stable=False
    )
    return lambda z0, z1: (loss(z0, z1) + loss(z1, z0)) / 2


def row_lse(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """Log-sum-exp over columns c [K, D] of each row of e [M, D] by Apple's cut cross-entropy: its
    loss for column 0 and what that takes off. Its filter, which leaves out gradients of small
    probabilities, would here leave out nearly all of them."""
    package = "cut-cross-entropy"
    cross_entropy = _cuda_peer("cut_cross_entropy", package, case).linear_cross_entropy

    def lse(e: Tensor, c: Tensor) -> Tensor:
        first = torch.zeros(len(e), dtype=torch.long, device=e.device)
        loss = cross_entropy(e, c, first, reduction="none", filter_eps=None)  # [M]
        return loss.float() + (e.float() * c[0].float()).sum(1)

    return lse


def _cut_cross_entropy(case: Case) -> Loss:
    """Over all rows; then each row's own similarity is taken out of its sum."""
    lse = row_lse(case)

    def loss(z0: Tensor, z1: Tensor) -> Tensor:
        n = len(z0)
        z = F.normalize(torch.cat([z0, z1]), dim=1)  # [M, D]
        e = z / case.temperature
        whole, wide = lse(e, z), e.float()
        own, pair = ((wide * x.float()).sum(1) for x in (z, z.roll(n, 0)))
        return (whole + torch.log(-torch.expm1(own - whole)) - pair).mean()

    return loss


def _cuda_peer(module: str, package: str, case: Case) -> ModuleType:
    """A peer of kernels for CUDA alone."""
    found = _peer(module, package)
    if case.device != "cuda":
        raise Skip(f"{package} serves CUDA tensors only")
    return found


def _peer(module: str, package: str) -> ModuleType:
    """A peer's module, or Skip with its name."""
    if package in ("lightly", "open_clip_torch", "timm", "torchvision"):  # all need it
        _stub_torchvision_ops()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        what = package if error.name == module.split(".")[0] else f"{error.name}, of {package},"
        raise Skip(f"{what} is not installed") from error
    except Exception as error:  # a peer may fail to import in any way; that is its own affair
        raise Skip(f"{package} is not importable here ({type(error).__name__}: {error})") from error


@functools.cache
def _stub_torchvision_ops() -> torch.library.Library | None:
    """Let torchvision's Python import beside a torch its compiled ops were not built for.

    lightly imports torchvision, which decorates two detection ops at import and fails if its own
    library did not load. Nothing here calls them; declaring them is enough.
    """
    try:
        importlib.import_module("torchvision")
        return None
    except ImportError:
        return None
    except (RuntimeError, OSError):
        pass
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # kept by the cache: the declarations end with the object


NT_XENT = (
    Provider("fastssl", _fastssl),
    Provider("reference", _reference, matrices=11),
    Provider("eager", _eager, matrices=3.1),
    Provider("torch.compile", _compiled, matrices=2.1),
    Provider("lightly", _lightly, matrices=4.3),
    Provider("lightly-formula", _lightly_formula, matrices=4.3),
    Provider("memeff", _memeff),
    Provider("cut-cross-entropy", _cut_cross_entropy),
    Provider("pytorch-metric-learning", _metric_learning, 512, "its mask is of O(M³)"),
    Provider("info-nce-pytorch", _info_nce, 512, "explicit negatives are of O(M²·D)"),
)
