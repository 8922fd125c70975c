"""LARS, for large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastssl.ops import ema_update_, lars_step
from fastssl.ops.lars_step import ORDERS, wide_dtype


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
        resting = dict(averages or {})
        for group in self.param_groups:
            for excluded, (params, grads, velocities) in self._lists(group, resting):
                adapted = not excluded and group["adapt"] is not False
                lars_step(
                    params,
                    grads,
                    velocities,
                    group["lr"],
                    momentum=group["momentum"],
                    weight_decay=0.0 if excluded else group["weight_decay"],
                    trust_coefficient=group["trust_coefficient"] if adapted else None,
                    eps=group["eps"],
                    order=group["order"],
                    nesterov=group["nesterov"],
                    separate_norms=group["separate_norms"],
                    averages=[resting.pop(w) for w in params if w in resting],
                    ema_momentum=ema_momentum,
                )
        ema_update_(list(resting.values()), list(resting), ema_momentum)
        return loss

    def _lists(
        self, group: dict[str, Any], averages: Mapping[Tensor, Tensor]
    ) -> list[tuple[bool, tuple[list[Tensor], ...]]]:
        """Parameters, gradients and velocities that may step together, all or none with averages,
        and whether neither adaptation nor decay is theirs."""
        found: dict[tuple[bool, bool, torch.device], tuple[list[Tensor], ...]] = {}
        for w in group["params"]:
            if w.grad is None:
                continue
            if w.grad.layout != torch.strided:
                raise ValueError(f"LARS takes no sparse gradients, as of a {list(w.shape)} one is")
            state = self.state[w]
            if "velocity" not in state:
                state["velocity"] = _velocity(w)
            excluded = group["adapt"] is None and w.dim() <= 1
            key = excluded, w in averages, w.device
            params, grads, velocities = found.setdefault(key, ([], [], []))
            params.append(w)
            grads.append(w.grad)
            velocities.append(state["velocity"])
        return [(excluded, lists) for (excluded, _, _), lists in found.items()]


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
