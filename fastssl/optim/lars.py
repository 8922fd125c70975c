"""LARS, for large batches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastssl.ops import ema_update_, kept, lars_step
from fastssl.ops.lars_step import OPTIONS, ORDERS, PLAIN, LarsStep, those, wide_dtype


class LARS(Optimizer):
    """SGD whose step on each layer is in proportion to the layer's weights.

    With ``d = ∇ + wd·w`` and ``r = η·‖w‖/‖d‖`` (1 where a norm is 0): ``v ← μ·v + lr·r·d``;
    ``w ← w − v``. Biases and norms, parameters of one dimension or none, have ``r = 1`` and
    ``wd = 0`` unless their group says otherwise. All tensors of a group take the step together.

    Args:
        params: parameters or groups of them; a group may have any of the settings below.
        lr: the rate; with a schedule, of the moment. Large batches B take SimCLR's rules, which
            :func:`fastssl.optim.scaled_lr` knows: ``0.3·B/256`` or ``0.075·√B``, after a warm-up.
            A 0-dim tensor on the parameters' device is never read by the host: a step may then be
            captured in a CUDA graph, and sees what the tensor holds when it is replayed.
        momentum: μ, in [0, 1).
        weight_decay: wd.
        trust_coefficient: η.
        eps: added to the norm that divides.
        order: "classic", the default of SimCLR's authors, has the learning rate in the velocity;
            "torch" outside of it, ``v ← μ·v + r·d``; ``w ← w − lr·v``, as MoCo v3, BYOL, Barlow
            Twins and most code for torch. They are the same at a constant rate. "popular", the
            other choice of SimCLR's authors: ``v ← μ·v + d``; ``w ← w − lr·r·v``, r by ‖v‖.
        nesterov: Nesterov's momentum.
        separate_norms: r by ``‖∇‖ + wd·‖w‖``, as You et al., apex and lightly; not for "popular".
        adapt: None, all but biases and norms; True, all of the group; False, none, which is SGD
            (torch's, by the order "torch"). Given, ``weight_decay`` is for all of the group.
        capturable: keep each group's rate in a tensor on its parameters' device, for CUDA graphs;
            change it by :func:`fastssl.optim.set_lr`. Warm up by a step before capturing.

    Velocities are float32 (float64 for float64 parameters), also in a checkpoint. Low-precision
    parameters are rounded to at each step, and late in training may no longer move: keep float32
    weights, and use autocast. Under torch.compile a float rate is a constant of the code, which is
    made anew when it changes; one in a tensor is not.

    Raises:
        ValueError: a setting is out of its range; a gradient is sparse.

    You et al. 2017, https://arxiv.org/abs/1708.03888; Chen et al. 2020,
    https://arxiv.org/abs/2002.05709
    """

    _plan: _Plan | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        order: str = "classic",
        nesterov: bool = False,
        separate_norms: bool = False,
        adapt: bool | None = None,
        capturable: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            order=order,
            nesterov=nesterov,
            separate_norms=separate_norms,
            adapt=adapt,
            capturable=capturable,
        )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        _place_rate(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # checkpoints of before there was a choice
            for key, value in dict(self.defaults, order="torch").items():
                group.setdefault(key, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        capturable = [group["capturable"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        # As saved: the base class has rounded them to the parameters' dtype.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = [w for group in self.param_groups for w in group["params"]]
        for i, w in zip(saved, mine, strict=True):
            if i in state_dict["state"]:
                self.state[w]["velocity"] = _velocity(w).copy_(state_dict["state"][i]["velocity"])
        for group, own in zip(self.param_groups, capturable, strict=True):
            group["capturable"] = own  # this program's choice, not the checkpoint's
            _place_rate(group)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        averages: Mapping[Tensor, Tensor] | None = None,
        ema_momentum: float | Tensor = 1.0,
    ) -> float | None:
        """Take a step; nothing is read from the device.

        Args:
            closure: computes the loss and its gradients anew, and gives the loss.
            averages: by parameter, a tensor of its shape that then follows it,
                ``θ ← m·θ + (1 − m)·w``, in the pass of the step where there is a gradient:
                ``dict(zip(online.parameters(), target.parameters()))``. That takes 8 bytes a
                float32 parameter where :func:`fastssl.ops.ema_update_` after the step takes 12.
            ema_momentum: m.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        averages = averages or {}
        plan, self._plan = self._plan, None
        if plan is None or kept.watched() or not plan.serves(self, averages):
            plan = _Plan(self, averages)
        if plan.step(self, ema_momentum):
            self._plan = plan
        return loss


class _Part:
    """Parameters of a group that step together, all or none with averages."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.params: list[Tensor] = []
        self.grads: list[Any] = []
        self.velocities: list[Tensor] = []
        self.averages: list[Tensor] = []
        self.plain: list[bool] = []  # neither adapted nor decayed
        self._step: LarsStep | None = None

    def find_gradients(self) -> bool:
        """Whether all have one."""
        self.grads = [w.grad for w in self.params]
        return True not in [grad is None for grad in self.grads]

    def step(self, group: dict[str, Any], ema_momentum: float | Tensor) -> bool:
        """Take a step; whether the next may go as this one did."""
        options = {name: group[name] for name in OPTIONS} | {"ema_momentum": ema_momentum}
        if group["adapt"] is False:
            options["trust_coefficient"] = None
        grads, self.grads = self.grads, []  # not held
        lists = self.params, grads, self.velocities, self.averages
        if self._step is None and not kept.watched():
            self._step = LarsStep(*lists, self.plain)
        if self._step is not None and self._step(grads, group["lr"], **options):
            return True
        for plain in sorted(set(self.plain)):
            w, g, v, averages = (those(of, self.plain, plain) for of in lists)
            told = options | (PLAIN if plain else {})
            lars_step(w, g, v, group["lr"], averages=averages, **told)
        return False


class _Plan:
    """Who steps together, as long as parameters, averages and who has a gradient are the same."""

    def __init__(self, optimizer: LARS, averages: Mapping[Tensor, Tensor]) -> None:
        self._groups = [(list(group["params"]), group["adapt"]) for group in optimizer.param_groups]
        self._averages = list(averages), list(averages.values())
        self._resting: list[Tensor] = []  # that have no gradient
        alone = dict(averages)  # that follow after the step
        parts: dict[tuple, _Part] = {}
        for i, group in enumerate(optimizer.param_groups):
            for w in group["params"]:
                if w.grad is None:
                    self._resting.append(w)
                    continue
                if w.grad.layout != torch.strided:
                    raise ValueError(
                        f"LARS takes no sparse gradients, as of a {list(w.shape)} one is"
                    )
                state = optimizer.state[w]
                if "velocity" not in state:
                    state["velocity"] = _velocity(w)
                excluded = group["adapt"] is None and w.dim() <= 1
                part = parts.setdefault((i, w in alone, w.device), _Part(i))
                part.plain.append(excluded)
                part.params.append(w)
                part.grads.append(w.grad)
                part.velocities.append(state["velocity"])
                if w in alone:
                    part.averages.append(alone.pop(w))
        self._parts = list(parts.values())
        self._velocities = [state.get("velocity") for state in optimizer.state.values()]
        self._alone = list(alone.values()), list(alone)

    def serves(self, optimizer: LARS, averages: Mapping[Tensor, Tensor]) -> bool:
        """Whether it is still right; finds the gradients."""
        groups = [(group["params"], group["adapt"]) for group in optimizer.param_groups]
        velocities = [state.get("velocity") for state in optimizer.state.values()]
        return (
            len(groups) == len(self._groups)
            and all(
                adapt is was and _same(params, mine)
                for (params, adapt), (mine, was) in zip(groups, self._groups, strict=True)
            )
            and _same(velocities, self._velocities)
            and _same(averages, self._averages[0])
            and _same(averages.values(), self._averages[1])
            and all(w.grad is None for w in self._resting)
            and all(part.find_gradients() for part in self._parts)
        )

    def step(self, optimizer: LARS, ema_momentum: float | Tensor) -> bool:
        """Take a step; whether the next may go as this one did."""
        groups = optimizer.param_groups
        again = [part.step(groups[part.group], ema_momentum) for part in self._parts]
        ema_update_(*self._alone, ema_momentum)
        return all(again)


def _same(some: Collection[Any], others: Collection[Any]) -> bool:
    """Whether they are the very same objects, in order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _velocity(w: Tensor) -> Tensor:
    return torch.zeros_like(w, dtype=wide_dtype(w), memory_format=torch.preserve_format)


def _place_rate(group: dict[str, Any]) -> None:
    if group["capturable"]:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device, copy=True)


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "weight_decay", "trust_coefficient", "eps"):
        if not isinstance(group[name], Tensor) and not group[name] >= 0:
            raise ValueError(f"{name} must be 0 or more, not {group[name]}")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum must lie in [0, 1), not {group['momentum']}")
    if group["order"] not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {group['order']!r}")
    if group["separate_norms"] and group["order"] == "popular":
        raise ValueError("separate_norms is not for the popular order, whose ratio is of ‖v‖")
