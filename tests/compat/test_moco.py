"""``fastssl.compat.moco`` against the steps of MoCo's ``builder.py``, written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.compat.moco import MoCo


class Encoder(nn.Module):
    """As torchvision's: called with num_classes, and ending with ``fc``."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Linear(10, 12)
        self.norm = nn.BatchNorm1d(12)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.body(x)).relu())


def written_out(model, im_q, im_k):
    """One step of the original on one device, in place; the loss."""
    q = F.normalize(model.encoder_q(im_q), dim=1)
    with torch.no_grad():
        pairs = zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True)
        for mine, key in pairs:
            key.mul_(model.m).add_(mine * (1 - model.m))
        k = F.normalize(model.encoder_k(im_k), dim=1)
    positive = (q * k).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, q @ model.queue.clone()], dim=1) / model.T
    start = int(model.queue_ptr)
    model.queue[:, start : start + len(k)] = k.T
    model.queue_ptr[0] = (start + len(k)) % model.K
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


@pytest.mark.parametrize("mlp", [False, True])
def test_steps_are_the_originals(mlp):
    mine = MoCo(Encoder, dim=6, K=24, m=0.9, T=0.1, mlp=mlp)
    theirs = copy.deepcopy(mine).double()
    optimizers = [torch.optim.SGD(model.encoder_q.parameters(), 0.1) for model in (mine, theirs)]
    for _ in range(5):  # past the end of the queue
        im_q, im_k = torch.randn(2, 8, 10)
        losses = mine(im_q, im_k), written_out(theirs, im_q.double(), im_k.double())
        assert abs(losses[0].double() - losses[1]) <= 1e-6 * losses[1]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    states = mine.state_dict(), theirs.state_dict()
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name].double(), value.double(), rtol=1e-5, atol=1e-6)


def test_parameters_buffers_and_their_beginning_are_the_originals():
    torch.manual_seed(3)
    model = MoCo(Encoder, dim=6, K=24, mlp=True)
    torch.manual_seed(3)
    encoder, other = Encoder(6), Encoder(6)
    hidden, _ = nn.Linear(12, 12), nn.Linear(12, 12)
    queue = F.normalize(torch.randn(6, 24), dim=0)

    state = model.state_dict()
    assert {name for name in state if not name.startswith("encoder_")} == {"queue", "queue_ptr"}
    assert state["queue"].shape == (6, 24)
    assert state["queue_ptr"].tolist() == [0]
    for name in ("encoder_q", "encoder_k"):
        assert torch.equal(state[f"{name}.body.weight"], encoder.body.weight)
        assert torch.equal(state[f"{name}.fc.2.weight"], encoder.fc.weight)
        assert torch.equal(state[f"{name}.fc.0.weight"], hidden.weight)
    assert not torch.equal(encoder.body.weight, other.body.weight)
    assert torch.equal(model.queue, queue)
    assert not any(p.requires_grad for p in model.encoder_k.parameters())


def test_checkpoints_load_and_keys_stay_side_by_side():
    model = MoCo(Encoder, dim=6, K=24)
    state = {name: torch.rand(value.shape).to(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model.queue, state["queue"])
    assert model.queue.T.is_contiguous()
    assert copy.deepcopy(model).double().queue.T.is_contiguous()


@pytest.mark.parametrize("batch", [5, 24, 30])
def test_batches_of_any_size_wrap(batch):
    model = MoCo(Encoder, dim=6, K=24, m=1.0)
    model.encoder_k.eval()
    expected, position = model.queue.clone(), 0
    for _ in range(6):
        im_q, im_k = torch.randn(2, batch, 10)
        model(im_q, im_k)
        for key in F.normalize(model.encoder_k(im_k), dim=1):
            expected[:, position] = key
            position = (position + 1) % 24
    torch.testing.assert_close(model.queue, expected)
    assert model.queue_ptr.tolist() == [position]


def test_backward_after_the_queue_moved_on():
    model = MoCo(Encoder, dim=6, K=8)
    loss = model(*torch.randn(2, 8, 10))  # the whole queue is new by now
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.encoder_q.parameters())
    assert all(p.grad is None for p in model.encoder_k.parameters())
