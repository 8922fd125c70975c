"""SimCLR reads and computes like its paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastssl.methods import SimCLR
from fastssl.nn import SmallCNN, projection_head


def method(temperature=0.5):
    return SimCLR(SmallCNN(1, width=4), projection_head("v1", 16, 32, 8), temperature)


def test_the_loss_is_that_of_the_paper():
    simclr = method(0.2)
    x0, x1 = torch.rand(2, 7, 1, 16, 16)
    z = F.normalize(simclr.head(simclr.encoder(torch.cat([x0, x1]))))
    similarity = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(similarity, (torch.arange(14) + 7) % 14)
    torch.testing.assert_close(simclr(x0, x1), expected)


def test_every_parameter_has_a_gradient():
    simclr = method()
    simclr(*torch.rand(2, 5, 1, 16, 16)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in simclr.parameters())


def test_embeddings_are_those_of_each_view():
    simclr = method().eval()
    x0, x1 = torch.rand(2, 5, 1, 16, 16)
    z0, z1 = simclr.embed(x0, x1)
    assert z0.shape == z1.shape == (5, 8)
    torch.testing.assert_close(z1, simclr.embed(x1)[0])
