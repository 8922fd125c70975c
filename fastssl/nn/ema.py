"""Modules that follow another by a moving average: of weights for evaluation, and of an encoder."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.nn.walk import holds, tensors_in, tensors_of, unwrapped
from fastssl.ops import ema_update_, kept
from fastssl.ops.ema_update import EmaUpdate

PLAIN = {Tensor, nn.Parameter}


class Follower(nn.Module):
    """A copy of a module that is never trained itself and follows it slowly: what :class:`EMA` and
    :class:`fastssl.nn.MomentumEncoder` share.

    Args:
        source: the module; copied as it is now, without what DistributedDataParallel or
            torch.compile wrap around it.
        master: keep a float32 average of every parameter and buffer of lower precision, of which
            the copy's is the rounded one. Without, the average itself is of that precision, and
            freezes: a step below 2⁻⁹ of a bfloat16 weight is rounded away, at m = 0.999 any step
            of a weight that is not off by twice its size.
    """

    _plan: _Plan | None = None

    def __init__(self, source: nn.Module, *, master: bool = True) -> None:
        super().__init__()
        self.module = copy.deepcopy(unwrapped(source)).requires_grad_(False)
        self.master = master
        tensors = tensors_of(self.module)
        self._narrow = [name for name, t in tensors.items() if master and _is_narrow(t)]
        self.masters = nn.ParameterList(
            nn.Parameter(tensors[name].float(), requires_grad=False) for name in self._narrow
        )

    def pairs(self, source: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """The averages, and the source's tensors that they follow, as they are now and each once:
        what ``ema_update_`` takes. Of sharded ones (DTensor) the local parts.

        Raises:
            ValueError: the source is not the module that was copied, or is sharded otherwise.
        TypeError: the copy was converted to a lower precision after it was made.
        """
        mine, theirs = tensors_of(self.module), tensors_of(unwrapped(source))
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())[0]
            raise ValueError(f"source is not the module that was copied: {odd} is not in both")
        mine |= dict(zip(self._narrow, self.masters, strict=True))
        for name, tensor in mine.items():
            if self.master and _is_narrow(tensor):
                raise TypeError(
                    f"{name} became {tensor.dtype} after its copy was made, and has no float32 "
                    "average: convert the model before"
                )
        pairs = [_local(name, tensor, theirs[name]) for name, tensor in mine.items()]
        return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]

    @torch.no_grad()
    def follow(self, source: nn.Module, momentum: float | Tensor) -> None:
        """Take a step towards the source, all tensors in one launch: ``θ ← m·θ + (1 − m)·θ_source``
        for parameters and floating-point buffers; integer buffers are copied.

        Args:
            source: the module that was copied, or one like it, wrapped or not.
            momentum: m, in [0, 1]: 1 stays, 0 copies. A 0-dim tensor on the module's device is not
                looked at by the host.

        Raises:
            ValueError: momentum lies outside [0, 1], or the source is another module.
        """
        source = unwrapped(source)
        if kept.watched():
            self._follow_anew(source, momentum)
        elif self._plan is None or not self._plan(self, source, momentum):
            self._plan = None  # not held while the next is made
            self._plan = _Plan(self, source)
            self._plan(self, source, momentum)

    def _follow_anew(self, source: nn.Module, momentum: float | Tensor) -> None:
        ema_update_(*self.pairs(source), momentum)
        ema_update_(*self._rounded(), 0.0)

    def _rounded(self) -> tuple[list[Tensor], list[Tensor]]:
        """The module's tensors of low precision, and the averages that they are rounded from."""
        tensors = tensors_of(self.module) if self._narrow else {}
        rounded = zip(self._narrow, self.masters, strict=True)
        pairs = [_local(name, tensors[name], master) for name, master in rounded]
        return [t for t, _ in pairs], [master for _, master in pairs]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None}  # of this copy's tensors

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        """A change of dtype is the module's: masters stay float32."""
        before = [master.data for master in self.masters]
        super()._apply(fn, recurse)
        for master, old in zip(self.masters, before, strict=True):
            if master.dtype != torch.float32:
                master.data = old.to(master.device)
        return self


class _Plan:
    """Steps of a follower towards one source, as long as both hold the very tensors they do now.

    Modules of the source are not held, and nothing of it once one of them is gone; the source
    itself may be another container of the same each time.
    """

    def __init__(self, follower: Follower, source: nn.Module) -> None:
        mine, theirs = tensors_in(follower), tensors_in(source)
        self._parts: list[Any] = [mine, theirs]
        parts = self._parts
        self._plain = all(type(t) in PLAIN for t in mine + theirs)  # others hold tensors themselves
        if self._plain:
            parts += [EmaUpdate(*pairs) for pairs in (follower.pairs(source), follower._rounded())]

        def forget(_: weakref.ref) -> None:
            parts.clear()

        owners = (m for m in source.modules() if m._parameters or m._buffers)
        self._owners = [weakref.ref(owner, forget) for owner in owners]

    def __call__(self, follower: Follower, source: nn.Module, momentum: float | Tensor) -> bool:
        """Take a step; False where there is another plan to make, and nothing is done."""
        if not self._parts:
            return False
        if not self._plain:
            follower._follow_anew(source, momentum)
            return True
        mine, theirs, update, rounding = self._parts
        if not (holds(follower, mine) and holds(source, theirs) and update(momentum)):
            return False
        if not rounding(0.0):  # the average has taken its step
            ema_update_(*follower._rounded(), 0.0)
            follower._plan = None
        return True


class EMA(Follower):
    """The moving average of a model's weights, for evaluation and as a target.

    ``θ_ema ← m·θ_ema + (1 − m)·θ`` for parameters and floating-point buffers, all in one launch;
    integer buffers are copied. Tied parameters are one. Every step looks anew at what the model
    holds, so parameters may be moved, replaced or reloaded between steps::

        ema = EMA(model, 0.999)
        for images in loader:
            ...
            optimizer.step()
            ema.update(model)
        ema(images)  # or ema.module, a module like the model, in evaluation mode

    Args:
        model: plain, or wrapped by DistributedDataParallel or torch.compile. A model sharded by
            fully_shard cannot be copied: make the EMA before, and shard ``ema.module`` alike.
        momentum: m, in [0, 1].
        schedule: None: m stays. An int T: m rises from ``momentum`` to 1 in T steps, by a cosine
            (see :func:`cosine_momentum`). A function of the step, from 0, gives each step's m.
        master: as of :class:`Follower`: float32 averages of lower-precision weights.

    Attributes:
        module: the averaged model.
        step: how many updates there were; in the ``state_dict``, so that a schedule goes on.

    Raises:
        ValueError: momentum lies outside [0, 1], or a schedule has no step.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.999,
        *,
        schedule: int | Callable[[int], float] | None = None,
        master: bool = True,
    ) -> None:
        super().__init__(model, master=master)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], not {momentum}")
        if isinstance(schedule, int) and schedule < 1:
            raise ValueError(f"schedule must be a function or at least 1 step, not {schedule}")
        self.module.eval()
        self.base, self.schedule, self.step = momentum, schedule, 0

    @property
    def momentum(self) -> float:
        """m of the next step."""
        if self.schedule is None:
            return self.base
        if isinstance(self.schedule, int):
            return cosine_momentum(self.base, min(self.step / self.schedule, 1.0))
        return self.schedule(self.step)

    def update(self, model: nn.Module, momentum: float | Tensor | None = None) -> None:
        """Take a step towards the model; ``momentum`` in place of the schedule's if given.

        Within torch.compile or a CUDA graph, where a number would be fixed, call :meth:`follow`
        with a tensor, and fill that from :attr:`momentum` outside. Raises as :meth:`follow` does.
        """
        self.follow(model, self.momentum if momentum is None else momentum)
        self.step += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The averaged model's output, without a graph."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a model like the copied one the averaged weights and buffers."""
        averages, tensors = self.pairs(model)
        ema_update_(tensors, averages, 0.0)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[nn.Module]:
        """Within the block the model itself has the averages; after it, its own values again."""
        own = [t.clone() for t in self.pairs(model)[1]]
        self.copy_to(model)
        try:
            yield model
        finally:
            ema_update_(self.pairs(model)[1], own, 0.0)

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def extra_repr(self) -> str:
        return f"momentum={self.base}, schedule={self.schedule}, step={self.step}"


def cosine_momentum(base: float, progress: float) -> float:
    """``1 − (1 − m₀)·(1 + cos(π·progress))/2``: from m₀ = ``base`` at 0 to 1 at the end.

    BYOL, Grill et al. 2020, https://arxiv.org/abs/2006.07733
    """
    return 1 - (1 - base) * (1 + math.cos(math.pi * progress)) / 2


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _local(name: str, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both as plain tensors of one shape: the parts of this rank, where they are sharded."""
    alike = mine.shape == theirs.shape
    if alike and type(mine) in PLAIN and type(theirs) in PLAIN:
        return mine, theirs
    placed = [
        (getattr(t, "device_mesh", None), getattr(t, "placements", None)) for t in (mine, theirs)
    ]
    if not alike or placed[0] != placed[1]:
        raise ValueError(
            f"source is not the module that was copied: {name} is {_layout(theirs)}, "
            f"not {_layout(mine)}"
        )
    if placed[0][1] is None:
        return mine, theirs
    return mine.to_local(), theirs.to_local()  # type: ignore[attr-defined]


def _layout(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {getattr(tensor, 'placements', '')}".strip()
