"""GradCache (``import grad_cache``): the exact gradient of a large batch, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.training.chunked import chunked_backward

__all__ = ["GradCache"]


class GradCache:
    """``GradCache(models, chunk_sizes, loss_fn)(x, y)``: gradients in ``.grad``, the loss returned.

    :func:`fastssl.training.chunked_backward` for each model in turn. Unlike the original, it moves
    a model's floating-point buffers (batch norm's running statistics) once a step, not twice, and
    where a model in DistributedDataParallel takes plain tensors, ranks reduce its gradients once,
    with the last chunk, whatever no_sync_except_last says; else with each chunk.

    Args:
        models: encoders; one may occur twice.
        chunk_sizes: rows embedded at a time, one number or one for each model.
        loss_fn: from the models' representations and keyword arguments to a scalar.
        split_input_fn: only None.
        get_rep_fn: from a model's output to its representation [N, D]; None: it is the output.
        fp16: use float16 autocast, which needs a scaler.
        scaler: a ``GradScaler``; used with fp16 only. Unscaling and updating are left to you.

    Raises:
        NotImplementedError: a split_input_fn.
        ValueError: fp16 without a scaler, or not a chunk size for each model.

    Gao et al. 2021, https://arxiv.org/abs/2101.06983
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        chunk_sizes: int | Sequence[int],
        loss_fn: Callable[..., Tensor],
        split_input_fn: Callable[[Any, int], Any] | None = None,
        get_rep_fn: Callable[[Any], Tensor] | None = None,
        fp16: bool = False,
        scaler: Any = None,
    ) -> None:
        if split_input_fn is not None:
            raise NotImplementedError(
                "split_input_fn: inputs are tensors, or lists and dicts of tensors, split by rows"
            )
        if fp16 and scaler is None:
            raise ValueError("fp16=True needs a scaler")
        self.models = list(models)
        sizes = [chunk_sizes] * len(models) if isinstance(chunk_sizes, int) else list(chunk_sizes)
        if len(sizes) != len(models):
            raise ValueError(f"chunk_sizes must be {len(models)}, one a model, not {len(sizes)}")
        self.chunk_sizes = sizes
        self.loss_fn = loss_fn
        self.get_rep_fn = get_rep_fn
        self.fp16 = fp16
        self.scaler = scaler

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As :meth:`cache_step`."""
        return self.cache_step(*args, **kwargs)

    def cache_step(
        self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any
    ) -> Tensor:
        """Add to ``.grad`` the gradient of the loss of the whole batch.

        Args:
            model_inputs: for each model a tensor, a list of tensors (arguments), a dict of tensors
                (keyword arguments), or a tuple of such a list and dict; each with as many rows.
            no_sync_except_last: as in the original, only if all models are in
                DistributedDataParallel.
            loss_kwargs: passed to loss_fn.

        Returns:
            The loss, detached and not scaled.

        Raises:
            NotImplementedError: an input of another kind.
            ValueError: not an input for each model, no_sync_except_last with another model.
        """
        if len(model_inputs) != len(self.models):
            raise ValueError(
                f"model_inputs must be {len(self.models)}, one a model, not {len(model_inputs)}"
            )
        ranked = all(isinstance(model, DistributedDataParallel) for model in self.models)
        if no_sync_except_last and not ranked:
            raise ValueError(
                "no_sync_except_last=True needs every model in DistributedDataParallel"
            )
        steps = [
            (*self._tower(model, x), size)
            for model, x, size in zip(self.models, model_inputs, self.chunk_sizes, strict=True)
        ]
        return self._step(steps, [], loss_kwargs)

    def _step(self, steps: list[Any], reps: list[Tensor], loss_kwargs: dict[str, Any]) -> Tensor:
        """The models that are left, given the representations by those before."""
        (embed, inputs, chunk_size), *rest = steps
        if not rest:

            def loss(z: Tensor) -> Tensor:
                with _autocast(self.fp16, z):
                    return self.loss_fn(*reps, z, **loss_kwargs)

            scale = self.scaler.scale if self.fp16 else None
            return chunked_backward(embed, loss, inputs, chunk_size, scale=scale)

        value = torch.empty(0)

        def through_the_rest(z: Tensor) -> Tensor:
            nonlocal value
            leaf = z.detach().requires_grad_()
            value = self._step(rest, [*reps, leaf], loss_kwargs)
            gradient = torch.zeros_like(z) if leaf.grad is None else leaf.grad
            return (z * gradient).sum()  # whose gradient for z is the loss's

        chunked_backward(embed, through_the_rest, inputs, chunk_size)
        return value

    def _tower(self, model: nn.Module, model_input: Any) -> tuple[nn.Module, list[Tensor]]:
        """A module from tensors to the representation, and the tensors."""
        args, kwargs = _arguments(model_input)
        if not kwargs and self.get_rep_fn is None and not self.fp16:
            return model, args
        return _Tower(model, list(kwargs), self.get_rep_fn, self.fp16), [*args, *kwargs.values()]


class _Tower(nn.Module):
    """A model with its calling convention."""

    def __init__(
        self, model: nn.Module, keywords: list[str], get_rep: Callable | None, fp16: bool
    ) -> None:
        super().__init__()
        self.model, self.keywords, self.get_rep, self.fp16 = model, keywords, get_rep, fp16

    def forward(self, *tensors: Tensor) -> Tensor:
        args = tensors[: len(tensors) - len(self.keywords)]
        kwargs = dict(zip(self.keywords, tensors[len(args) :], strict=True))
        with _autocast(self.fp16, tensors[0]):
            out = self.model(*args, **kwargs)
        return out if self.get_rep is None else self.get_rep(out)


def _arguments(model_input: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """A model's input as arguments and keyword arguments."""
    args: Any = []
    kwargs: Any = {}
    if isinstance(model_input, Tensor):
        args = [model_input]
    elif isinstance(model_input, list):
        args = model_input
    elif isinstance(model_input, Mapping):  # a UserDict too
        kwargs = dict(model_input)
    elif isinstance(model_input, tuple) and [type(part) for part in model_input] == [list, dict]:
        args, kwargs = model_input
    if (not args and not kwargs) or not all(
        isinstance(x, Tensor) for x in [*args, *kwargs.values()]
    ):
        raise NotImplementedError(
            "a model's input must be a tensor, a list or a dict of tensors, or a tuple of such a "
            f"list and dict, not {type(model_input).__name__}"
        )
    return args, kwargs


def _autocast(fp16: bool, x: Tensor) -> Any:
    return torch.autocast(x.device.type, torch.float16) if fp16 else nullcontext()
