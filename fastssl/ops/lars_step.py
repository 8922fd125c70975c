"""``lars_step``: a step of LARS on all parameters at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from fastssl import backends
from fastssl import reference as references
from fastssl.ops.checks import FLOATS, check_zero_dim
from fastssl.ops.kept import Kept, Layout
from fastssl.ops.library import define

ORDERS = ("classic", "torch", "popular")
PLAIN = {"weight_decay": 0.0, "trust_coefficient": None}
OPTIONS = (  # of the raw op, in its order
    *("momentum", "weight_decay", "trust_coefficient", "eps"),
    *("order", "nesterov", "separate_norms"),
)


@torch.no_grad()
def lars_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: float | Tensor,
    *,
    momentum: float,
    weight_decay: float = 0.0,
    trust_coefficient: float | None = 1e-3,
    eps: float = 0.0,
    order: str = "classic",
    nesterov: bool = False,
    separate_norms: bool = False,
    averages: Sequence[Tensor] = (),
    ema_momentum: float | Tensor = 1.0,
) -> None:
    """Move parameters w by their gradients g, each layer in proportion to its weights; in place.

    With ``d = g + wd·w``, the learning rate γ and the trust ratio r, which is 1 where a norm is 0:

    =========  ===========================  =============  ==========
    order      velocity                     parameter      r
    =========  ===========================  =============  ==========
    classic    ``v ← μ·v + γ·r·d``          ``w ← w − v``  η‖w‖ / ‖d‖
    torch      ``v ← μ·v + r·d``            ``w ← w − γ·v``  η‖w‖ / ‖d‖
    popular    ``v ← μ·v + d``              ``w ← w − γ·r·v``  η‖w‖ / ‖v‖
    =========  ===========================  =============  ==========

    Nesterov's momentum takes ``μ·v + (what v has just gained)`` for v in the second column and in
    the third norm. The orders differ while γ changes, and "popular" by its ratio.

    Args:
        params: w, of any shapes; float32, bfloat16, float16 or float64, on one device.
        grads: g, a gradient of each parameter's shape.
        velocities: v, of each parameter's shape; float32, float64 for float64 parameters.
        lr: γ, a float or a 0-dim tensor on the parameters' device, which is not read by the host.
        momentum: μ.
        weight_decay: wd.
        trust_coefficient: η; None takes r = 1, which is SGD.
        eps: added to the norm that divides.
        order: "classic", "torch" or "popular".
        nesterov: Nesterov's momentum.
        separate_norms: take ``‖g‖ + wd·‖w‖`` for ``‖d‖``, as You et al. do; not with "popular".
        averages: θ, none or a tensor of each parameter's shape, which follows the parameter in the
            same pass: ``θ ← m·θ + (1 − m)·w``.
        ema_momentum: m, a float or a tensor like ``lr``.

    Norms are accumulated in float64, the rest is computed in float32 (float64 for float64
    parameters). Results are bitwise the same at any number of threads. A bfloat16 or float16
    parameter is rounded to at each step, and does not see steps below half of its last digit.

    Raises:
        TypeError: a tensor is not of such a dtype.
        ValueError: lists differ in length, tensors in shape or device; there is no such order.
        BackendError: a backend was asked for that cannot serve these tensors.

    You et al. 2017, https://arxiv.org/abs/1708.03888; orders as in SimCLR, Chen et al. 2020,
    https://arxiv.org/abs/2002.05709, and in torch.optim.SGD
    """
    check_order(order, separate_norms)
    _check(params, grads, velocities, averages)
    if not params:
        return
    device = params[0].device
    options = (momentum, weight_decay, trust_coefficient, eps, order, nesterov, separate_norms)
    tensors = (list(params), list(grads), list(velocities), list(averages))
    step = _backend(backends.select("lars_step", device.type))
    step(*tensors, *_arguments(device, lr, options, ema_momentum))
    if not torch.compiler.is_compiling():  # else the schema tells
        torch.autograd.graph.increment_version([*params, *velocities, *averages])


class LarsStep:
    """:func:`lars_step` of the same tensors, step after step, but for gradients, which come anew:
    they are checked and laid out once, and a step then looks only for whether any has changed. It
    holds all but the gradients.

    Args:
        plain: of each parameter, whether it has r = 1 and wd = 0, as biases and norms do; none is.

    Raises:
        as :func:`lars_step` does.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        velocities: Sequence[Tensor],
        averages: Sequence[Tensor] = (),
        plain: Sequence[bool] = (),
    ) -> None:
        _check(params, grads, velocities, averages)
        plain = list(plain) or [False] * len(params)
        written = [*params, *velocities, *averages]
        self._written, self._device = written, params[0].device
        self._backend = backends.select("lars_step", self._device.type)
        self._kept, self._layout = Kept(written, len(written)), Layout(grads)
        self._launch = None
        if self._backend == "triton" and not all(plain):
            triton = import_module("fastssl_kernels.lars_step")
            self._launch = triton.prepare_lars_step_fwd(params, grads, velocities, averages, plain)
        self._parts: list[tuple] = [
            (which, *(those(of, plain, which) for of in (params, velocities, averages)))
            for which in sorted(set(plain))
        ]
        self._plain = plain

    def __call__(
        self, grads: list[Tensor], lr: float | Tensor, *, ema_momentum: float | Tensor, **options
    ) -> bool:
        """Take a step; the options are those of :func:`lars_step`, all of them. False, and nothing
        is done: a tensor is not what it was, or another backend would serve it now."""
        check_order(options["order"], options["separate_norms"])
        arguments = _arguments(self._device, lr, [options[name] for name in OPTIONS], ema_momentum)
        addresses = self._layout.addresses(grads)
        if (
            addresses is None
            or backends.select("lars_step", self._device.type) != self._backend
            or not self._kept.same()
        ):
            return False
        if self._launch is not None:
            self._launch(addresses, *arguments)
        else:
            self._by_parts(grads, options, lr, ema_momentum)
        torch.autograd.graph.increment_version(self._written)
        return True

    def _by_parts(self, grads, options, lr, ema_momentum) -> None:
        """The plain ones by themselves."""
        step = _backend(self._backend)
        for plain, params, velocities, averages in self._parts:
            told = options | (PLAIN if plain else {})
            arguments = _arguments(self._device, lr, [told[name] for name in OPTIONS], ema_momentum)
            step(params, those(grads, self._plain, plain), velocities, averages, *arguments)


def those(tensors: Sequence[Tensor], plain: Sequence[bool], which: bool) -> list[Tensor]:
    """Those that are plain, or those that are not."""
    return [t for t, is_plain in zip(tensors, plain, strict=False) if is_plain == which]


def _backend(name: str) -> Callable[..., None]:
    return _reference_fwd if name == "reference" else backends.raw("lars_step_fwd", name)


def _arguments(device, lr, options, ema_momentum) -> tuple:
    """What the raw op takes beside the tensors."""
    gamma, factor = _scalar(lr, "lr", device)
    m, keep = _scalar(ema_momentum, "ema_momentum", device)
    return gamma, factor, *options, m, keep


def _scalar(x: float | Tensor, name: str, device: torch.device) -> tuple[Tensor | None, float]:
    """A tensor and a factor that make the number; a CPU's tensor is the host's to read."""
    if not isinstance(x, Tensor):
        return None, float(x)
    check_zero_dim(name, x)
    if x.device == device:
        return x, 1.0
    if x.device.type == "cpu":
        return None, float(x)
    raise ValueError(f"{name} must be on the device of params, {device}, not {x.device}")


def check_order(order: str, separate_norms: bool) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    if separate_norms and order == "popular":
        raise ValueError("separate_norms is not for the popular order, whose ratio is of ‖v‖")


def _check(params, grads, velocities, averages) -> None:
    device = params[0].device if params else None
    lists = {"params": params, "grads": grads, "velocities": velocities, "averages": averages}
    for name, tensors in lists.items():
        if len(tensors) != len(params) and (tensors or name != "averages"):
            raise ValueError(f"{name} must be {len(params)} tensors, not {len(tensors)}")
        for i, (w, t) in enumerate(zip(params, tensors, strict=False)):
            kinds = FLOATS if name != "velocities" else (wide_dtype(w),)
            if t.dtype not in kinds or t.layout != torch.strided:
                what = "a float32, bfloat16, float16 or float64 tensor"
                if name == "velocities":
                    what = f"{wide_dtype(w)} for {w.dtype}"
                found = t.dtype if t.dtype not in kinds else t.layout
                raise TypeError(f"{name}[{i}] must be {what}, not {found}")
            if t.shape != w.shape:
                raise ValueError(
                    f"{name}[{i}] must have the shape of params[{i}], {list(w.shape)}, "
                    f"not {list(t.shape)}"
                )
            if t.device != device:
                raise ValueError(
                    f"{name}[{i}] must be on the device of params[0], {device}, not {t.device}"
                )


def wide_dtype(w: Tensor) -> torch.dtype:
    """What a parameter's step is computed in, and its velocity held in."""
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _fwd_fake(params, grads, velocities, averages, *options):
    return None


def _reference_fwd(
    params, grads, velocities, averages, lr, factor, momentum, weight_decay, trust_coefficient,
    eps, order, nesterov, separate_norms, ema_scalar, ema_momentum,
):  # fmt: skip
    references.lars_step(
        params,
        grads,
        velocities,
        factor if lr is None else factor * lr,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        eps=eps,
        order=order,
        nesterov=nesterov,
        separate_norms=separate_norms,
        averages=averages,
        ema_momentum=ema_momentum if ema_scalar is None else ema_momentum * ema_scalar,
    )


define(
    "lars_step_fwd(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] velocities, "
    "Tensor(c!)[] averages, Tensor? lr, float factor, float momentum, float weight_decay, "
    "float? trust_coefficient, float eps, str order, bool nesterov, bool separate_norms, "
    "Tensor? ema_scalar, float ema_momentum) -> ()",
    fake=_fwd_fake,
    reference=_reference_fwd,
    module="lars_step",
)
backends.register("lars_step", "native", "triton")
