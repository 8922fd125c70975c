"""torch.compile without graph breaks, dynamic shapes, torch.export."""

from __future__ import annotations

import torch

import fastssl
from fastssl.functional import nt_xent
from tests.cases import views


def test_compile_fullgraph_with_gradients():
    z0, z1 = (z.requires_grad_() for z in views("related", 40, 16))
    t = torch.tensor(0.3, requires_grad=True)
    compiled = torch.compile(nt_xent, fullgraph=True, dynamic=True)
    for rows in (40, 31):
        a, b = z0[:rows], z1[:rows]
        eager, traced = nt_xent(a, b, t), compiled(a, b, t)
        torch.testing.assert_close(traced, eager)
        for mine, right in zip(
            torch.autograd.grad(traced, (z0, z1, t)),
            torch.autograd.grad(eager, (z0, z1, t)),
            strict=True,
        ):
            torch.testing.assert_close(mine, right)


def test_compile_follows_a_change_of_backend():
    z0, z1 = views("related", 12, 8)
    compiled = torch.compile(lambda a, b: nt_xent(a, b, 0.2), fullgraph=True, backend="aot_eager")
    free = compiled(z0, z1)
    with fastssl.use_backend("reference"):
        torch.testing.assert_close(compiled(z0, z1), free)


def test_export_with_a_dynamic_batch():
    class Loss(torch.nn.Module):
        def forward(self, z0, z1):
            return nt_xent(z0, z1, 0.5)

    z0, z1 = views("related", 10, 6)
    n = torch.export.Dim("n", min=2)
    program = torch.export.export(Loss(), (z0, z1), dynamic_shapes={"z0": {0: n}, "z1": {0: n}})
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "fastssl.similarity_lse_fwd.default" in calls
    torch.testing.assert_close(program.module()(z0[:7], z1[:7]), nt_xent(z0[:7], z1[:7], 0.5))
