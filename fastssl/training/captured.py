"""A whole training step as one CUDA graph: one launch for all of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # steps before the capture: kernels are compiled, states and tables made


class CapturedStep:
    """A step of training that is captured into a CUDA graph, and then replayed.

    Calls are steps, all of them: the first ``warm_up`` run as they are, the next is captured and
    replayed, as are those after it. On a CPU all run as they are. ::

        optimizer = LARS(model.parameters(), 0.3, capturable=True)
        momentum = torch.tensor(0.996, device="cuda")

        def step(x0, x1):
            optimizer.zero_grad(set_to_none=True)
            loss = nt_xent(model(x0), model(x1), 0.1)
            loss.backward()
            optimizer.step()
            ema.follow(model, momentum)
            return loss.detach()

        train = CapturedStep(step)
        for i, (x0, x1) in enumerate(loader):
            set_lr(optimizer, rates[i])  # into the rate's tensor
            momentum.fill_(cosine_momentum(0.996, i / steps))
            loss = train(x0, x1)

    A graph repeats its kernels with the numbers that Python gave them once. What changes from step
    to step must lie in tensors: a rate (``LARS(..., capturable=True)``), an average's momentum (a
    tensor given to ``follow``), a queue's position (it does). Views are made before the step, as
    their seed is a number, and given to it.

    Args:
        step: from tensors, of the same shapes and dtypes at every call, to a tensor or a tuple of
            them, or None. It must not wait for the device.
        warm_up: at least 1.

    Raises:
        ValueError: no warm-up; inputs that are not as they were at the capture.
    """

    def __init__(self, step: Callable[..., Any], *, warm_up: int = WARM_UP) -> None:
        if warm_up < 1:
            raise ValueError(f"warm_up must be at least 1 step, not {warm_up}")
        self.step = step
        self.left = warm_up
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._result: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """What the step gives; of a replay, tensors that the next one overwrites."""
        if not any(x.is_cuda for x in inputs):
            return self.step(*inputs)
        if self._graph is None and self.left:
            self.left -= 1
            return self._beside(inputs)
        if self._graph is None:
            self._inputs = tuple(x.clone() for x in inputs)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self.step(*self._inputs)
        self._take(inputs)
        self._graph.replay()
        return self._result

    def _beside(self, inputs: tuple[Tensor, ...]) -> Any:
        """A step on a stream of its own, as autograd's nodes must not remember the usual one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result

    @torch.no_grad()
    def _take(self, inputs: tuple[Tensor, ...]) -> None:
        was = [(x.shape, x.dtype) for x in self._inputs]
        if [(x.shape, x.dtype) for x in inputs] != was:
            raise ValueError(
                f"inputs must be as at the capture, {_told(self._inputs)}, not {_told(inputs)}"
            )
        for mine, x in zip(self._inputs, inputs, strict=True):
            mine.copy_(x, non_blocking=True)


def _told(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{x.dtype} {list(x.shape)}" for x in tensors)
