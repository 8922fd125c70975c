"""What each of two processes checks, as test_ranks.py starts them under torchrun."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_chunked import Embed, gradients, relative
from test_run import metrics, settings
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.functional import nt_xent
from fastssl.training import chunked_backward, train
from fastssl.training.ranks import Ranks, ranks


def gradient_is_the_mean_over_ranks(here: Ranks) -> None:
    torch.manual_seed(0)
    module = Embed(nn.BatchNorm2d(8))
    alone = copy.deepcopy(module)
    parallel = DistributedDataParallel(module)
    torch.manual_seed(1 + here.rank)
    inputs = [torch.rand(10, 1, 6, 6) for _ in range(2)]
    for _ in range(2):  # twice: the reducer must be ready again
        parallel.zero_grad()
        alone.zero_grad()
        chunked_backward(parallel, nt_xent, inputs, 4)
        chunked_backward(alone, nt_xent, inputs, 4)
        mean = gradients(alone)
        dist.all_reduce(mean)
        assert relative(gradients(module), mean / here.world_size) < 1e-6
    assert torch.equal(module.layers[1].running_mean, alone.layers[1].running_mean)


def chunked_gradient_is_that_of_one_process(here: Ranks) -> None:
    torch.manual_seed(0)
    alone = Embed()
    together = copy.deepcopy(alone)
    inputs = [torch.rand(20, 1, 6, 6) for _ in range(2)]
    whole = nt_xent(*alone(*inputs))
    whole.backward()
    mine = [x[here.rank :: here.world_size] for x in inputs]
    parallel = DistributedDataParallel(together)
    for ring in (False, True):
        parallel.zero_grad()
        loss_of_all = functools.partial(nt_xent, group=True, ring=ring)
        loss = chunked_backward(parallel, loss_of_all, mine, 4)
        assert relative(loss, whole.detach()) < 1e-6
        assert relative(gradients(together), gradients(alone)) < 1e-6


def a_run(here: Ranks, directory: Path) -> None:
    config = settings(directory, batch_size=128, epochs=1, chunk_size=20, ring=True)
    path, _ = train(config)
    if here.first:
        assert len(metrics(path)) == 11
        assert [entry.name for entry in directory.iterdir()] == ["run"]
    dist.barrier()
    train(config, resume=config.run_dir)  # nothing is left to do, on either


if __name__ == "__main__":
    with ranks("cpu") as here:
        gradient_is_the_mean_over_ranks(here)
        chunked_gradient_is_that_of_one_process(here)
        a_run(here, Path(sys.argv[1]))
    print("done", flush=True)
