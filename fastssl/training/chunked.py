"""The exact gradient of a large batch, with the activations of a small one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def chunked_backward(
    embed: nn.Module,
    loss: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    chunk_size: int | None = None,
    *,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Add to ``.grad`` the gradient of ``loss(*embed(*inputs))``, embedding a few rows at a time.

    The gradient is that of the whole batch, not a mean over chunks:

    1. embed every chunk without a graph: only embeddings stay in memory;
    2. take the loss of all embeddings, and its gradient with respect to each of them;
    3. embed every chunk again, with a graph, and pass its embeddings' gradient back through it.

    The cost is one more forward pass. Random states (dropout) are replayed, so that both passes see
    the same noise. Floating-point buffers (batch norm's running statistics) move once a step, by
    the mean over the chunks weighted by their rows; integer buffers count one step. In training
    mode batch norm normalises by each chunk's own statistics, as it does by each device's when
    training on several: only without batch statistics is the result that of one large pass.

    Args:
        embed: a module from the inputs' rows to one embedding tensor for each, or a tuple of
            tensors, row i of each from row i of the inputs. It may be wrapped in
            DistributedDataParallel (gradients are then reduced with the last chunk, and every rank
            must have equally many), compiled, and use autocast inside.
        loss: from all embedding tensors to a scalar. Its own parameters, if it has any, get their
            gradient too, in step 2.
        inputs: tensors of N rows each.
        chunk_size: n, rows embedded at a time; None or n ≥ N: all, in one pass with one graph.
        scale: applied to the loss before its gradient is taken, such as ``GradScaler.scale``.

    Returns:
        The loss, detached and not scaled.

    Raises:
        ValueError: chunk_size is not positive, there are no inputs, or their rows differ in number.

    Gao et al. 2021 (GradCache), https://arxiv.org/abs/2101.06983
    """
    if chunk_size is not None and chunk_size <= 0:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    if not inputs or len({len(x) for x in inputs}) > 1:
        raise ValueError(f"inputs must be of one length, not {[len(x) for x in inputs]}")
    scale = scale or (lambda value: value)
    if chunk_size is None or chunk_size >= len(inputs[0]):
        value = loss(*_as_tuple(embed(*inputs)))
        scale(value).backward()
        return value.detach()

    chunks = list(zip(*(x.split(chunk_size) for x in inputs), strict=True))
    buffers = _Buffers(embed)
    states = []
    parts = []
    alone = embed.module if isinstance(embed, DistributedDataParallel) else embed
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_states(chunk[0].device))
            parts.append(_as_tuple(alone(*chunk)))
            buffers.collect(share=len(chunk[0]) / len(inputs[0]))
    torch.clear_autocast_cache()  # an autocast around this call keeps weights cast without a graph

    embeddings = [torch.cat(z).requires_grad_() for z in zip(*parts, strict=True)]
    value = loss(*embeddings)
    scale(value).backward()
    gradients = zip(*(_gradient(z).split(chunk_size) for z in embeddings), strict=True)

    with torch.random.fork_rng(_cuda_devices(inputs[0].device)):
        for i, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True)):
            _set_random_states(state, chunk[0].device)
            last = i == len(chunks) - 1
            with nullcontext() if last else _no_sync(embed):
                torch.autograd.backward(_as_tuple(embed(*chunk)), gradient)
    buffers.finish()
    return value.detach()


class _Buffers:
    """A module's buffers over the chunks of one step.

    Every chunk starts from the values before the step. What a batch statistic adds to a running
    one is linear in it, so the mean of the chunks' changes is the change by the chunks' mean.
    """

    def __init__(self, module: nn.Module) -> None:
        self.live = list(module.buffers())
        self.before = [buffer.clone() for buffer in self.live]
        self.after = [buffer.clone() for buffer in self.live]

    def collect(self, share: float) -> None:
        """Note what a chunk, of this share of the rows, changed, and take it back."""
        for live, before, after in zip(self.live, self.before, self.after, strict=True):
            if live.is_floating_point():
                change = torch.where(live == before, 0, live - before)  # 0 for constants of ±inf
                after.add_(change, alpha=share)
            else:
                after.copy_(live)
            live.copy_(before)

    def finish(self) -> None:
        """Let the step's change stand, whatever the second pass did."""
        with torch.no_grad():
            for live, after in zip(self.live, self.after, strict=True):
                live.copy_(after)


def _as_tuple(embeddings: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (embeddings,) if isinstance(embeddings, Tensor) else tuple(embeddings)


def _gradient(z: Tensor) -> Tensor:
    return torch.zeros_like(z) if z.grad is None else z.grad


def _no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """No reduction over ranks: it comes once, with the last chunk."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _random_states(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


def _set_random_states(states: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    cpu, cuda = states
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
