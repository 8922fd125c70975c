"""The specification of ``prototype_cross_entropy``. It writes every distribution; the kernels never
do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prototype_cross_entropy(
    student: Sequence[Tensor],  # S of [N, K]
    teacher: Sequence[Tensor],  # T of [N, K]
    center: Tensor | None,  # [K] or [T, K]
    own: Sequence[int],  # T
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """``loss_i = −Σ_t Σ_{s≠own_t} Σ_k q_tik log p_sik``, [N], over prototypes k.

    ``p = softmax(student / student_temperature)``, and without gradient
    ``q = softmax((teacher − center) / teacher_temperature)``.

    Everything is computed in float64 where the device has it: this is the truth, not the pace.
    """
    device = student[0].device.type
    with torch.autocast(device, enabled=False):
        wide = torch.float32 if device == "mps" else torch.float64
        crops = torch.stack([s.to(wide) for s in student]) / student_temperature  # [S, N, K]
        views = torch.stack([t.detach().to(wide) for t in teacher])  # [T, N, K]
        if center is not None:
            views = views - center.detach().to(wide).view(-1, 1, views.shape[2])
        targets = (views / teacher_temperature).softmax(dim=2)
        crossing = -torch.einsum("tnk,snk->tsn", targets, crops.log_softmax(dim=2))  # [T, S, N]
        meets = torch.tensor([[s != o for s in range(len(student))] for o in own])  # [T, S]
        return crossing[meets.to(crossing.device)].sum(dim=0)
