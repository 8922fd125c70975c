"""The sigmoid loss over N image-text pairs: ``fastssl bench siglip``."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.goals import BF16, at_least
from bench.harness import Benchmark, Case, Provider
from bench.ops.bench_similarity_softplus import answer, flops, inputs


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss as the paper's pseudocode has it."""
    logits = scale * x @ y.T + bias  # [N, N]
    signs = 2 * torch.eye(len(x), dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(x)


def _fastssl(case: Case):
    from fastssl.functional import siglip_loss

    return lambda x, y, scale, bias: siglip_loss(x, y, scale, logit_bias=bias)


def _open_clip(case: Case):
    peers._stub_torchvision_ops()
    return peers._peer("open_clip.loss", "open_clip_torch").SigLipLoss()


BENCH = Benchmark(
    name="siglip",
    title="Sigmoid loss of N pairs, forward + backward",
    inputs=inputs,
    truth=functools.partial(answer, diagonal=True),
    providers=(
        Provider("fastssl", _fastssl),
        Provider("eager", lambda case: eager, matrices=7),
        Provider("torch.compile", lambda case: peers.compiled(eager), matrices=3),
        Provider("open_clip", _open_clip, matrices=7),
    ),
    flops=flops,
    rows=(512, 2048, 8192),
    memory_rows=(8192,),
    goals=(at_least(3, "ratio", "torch.compile", rows=8192, **BF16),),
)
