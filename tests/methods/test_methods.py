"""Each method computes what its paper says, and changes what its paper changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.errors import UserError
from fastssl.methods import METHODS, NPID, EndToEnd, MoCo, MoCoV3, SupCon
from fastssl.nn import SmallCNN, SplitBatchNorm, projection_head
from fastssl.training import chunked_backward

N, DIM, SAMPLES = 9, 8, 30
OPTIONS = {
    "moco": {"dim": DIM, "queue_size": 20, "key_momentum": 0.9},
    "moco-v3": {"dim": DIM, "predictor_hidden": 16, "key_momentum": 0.9},
    "npid": {"dim": DIM, "num_samples": SAMPLES, "negatives": 12},
    "nnclr": {"dim": DIM, "queue_size": 20, "predictor_hidden": 16},
    "swav": {"dim": DIM, "prototypes": 6, "queue_size": 20, "queue_epoch": 0, "freeze_epochs": 0},
    "dino": {"dim": DIM, "prototypes": 20, "key_momentum": 0.9, "freeze_epochs": 0},
    "deepcluster": {"dim": DIM, "prototypes": 5, "num_samples": SAMPLES, "clusterings": 2},
    "byol": {"dim": DIM, "predictor_hidden": 16, "key_momentum": 0.9},
    "simsiam": {"dim": DIM, "predictor_hidden": 4},
}
TEACHERS = ("key_encoder", "teacher", "target_encoder")
MEMORIES = ("queue", "bank", "criterion", "centroids", "labels")
EVERY = pytest.mark.parametrize("name", METHODS)


def parts(head="v1"):
    return SmallCNN(1, width=4), projection_head(head, 16, 32, DIM)


def build(name, **options):
    method = METHODS[name](*parts(), **{**OPTIONS.get(name, {}), **options})
    if name == "deepcluster":  # as after a first epoch
        method.centroids.copy_(F.normalize(torch.randn(2, 5, DIM), dim=2))
        method.labels.copy_(torch.randint(-1, 5, (2, SAMPLES)))
    return method


def images(method, n=N):
    """Two views, or one, and where small crops are welcome two of these."""
    large = torch.rand(method.views, n, 1, 12, 12).unbind()
    return large + torch.rand(2, n, 1, 8, 8).unbind() if method.more_views else large


def samples(method, n=N):
    every = {"labels": torch.arange(n) // 2, "indices": torch.randperm(SAMPLES)[:n]}
    return {name: every[name] for name in method.needs}


def cross_entropy(q, k, negatives, temperature):
    """MoCo's, with all logits written down."""
    q, k, negatives = (F.normalize(x.double(), dim=-1) for x in (q, k, negatives))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))


def in_batch(q, k, temperature):
    q, k = (F.normalize(x.double()) for x in (q, k))
    return F.cross_entropy(q @ k.T / temperature, torch.arange(len(q)))


def same(a, b):
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-6)


# What every method does


@EVERY
def test_what_learns_gets_a_gradient_and_nothing_else_does(name):
    method = build(name)
    kept = {key: value.clone() for key, value in method.state_dict().items()}
    loss = method(*images(method), **samples(method))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    for key, parameter in method.named_parameters():
        learns = not key.startswith(TEACHERS)
        assert parameter.requires_grad == learns, key
        assert (parameter.grad is not None) == learns, key
        assert not learns or parameter.grad.isfinite().all(), key
    for key, value in method.state_dict().items():
        assert not key.startswith(MEMORIES) or torch.equal(value, kept[key]), key


@EVERY
@pytest.mark.parametrize("chunk", [4, 1])
def test_the_chunked_gradient_is_that_of_the_batch(name, chunk):
    whole = build(name).eval()
    chunked = copy.deepcopy(whole)
    views, given = images(whole), samples(whole)
    torch.manual_seed(1)
    expected = whole.loss(*whole.embed(*views), *whole.targets(*views), **given)
    expected.backward()

    torch.manual_seed(1)
    targets = chunked.targets(*views, chunk_size=chunk)

    class Embed(nn.Module):
        def forward(self, *rows):
            return chunked.embed(*rows)

    loss = chunked_backward(Embed(), lambda *z: chunked.loss(*z, *targets, **given), views, chunk)
    same(loss, expected)
    for mine, theirs in zip(chunked.parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None:
            assert (mine.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6


@EVERY
def test_a_step_is_repeatable_from_the_state(name):
    method = build(name)
    views, given = images(method), samples(method)

    def step(method):
        torch.manual_seed(2)
        method.before_step(0.5, 1.0)
        z = [*method.embed(*views), *method.targets(*views)]
        loss = method.loss(*z, **given)
        method.after_step(*z, **given)
        return loss

    step(method)
    other = build(name)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(step(method), step(other))
    torch.testing.assert_close(method.state_dict(), other.state_dict(), rtol=0, atol=0)


@EVERY
def test_embeddings_of_lower_precision(name):
    method = build(name)
    views, given = images(method), samples(method)
    with torch.autocast("cpu", torch.bfloat16):
        z = [*method.embed(*views), *method.targets(*views)]
    assert z[0].dtype == torch.bfloat16
    torch.manual_seed(3)
    loss = method.loss(*z, **given)
    torch.manual_seed(3)
    same(loss, method.loss(*(x.float() for x in z), **given))
    method.after_step(*z, **given)


# MoCo


def test_moco_tells_keys_from_the_queue():
    moco = MoCo(*parts("mlp"), dim=DIM, queue_size=20, temperature=0.3)
    x_q, x_k = images(moco)
    q = moco.head(moco.encoder(x_q))
    k = moco.key_encoder(x_k)
    same(moco(x_q, x_k), cross_entropy(q, k, moco.queue.rows, 0.3))


def test_moco_follows_and_remembers():
    moco = build("moco")
    with torch.no_grad():
        moco.encoder.layers[0].weight.add_(1)
    before = moco.key_encoder.module[0].layers[0].weight.clone()
    keys = torch.randn(N, DIM)
    moco.after_step(torch.randn(N, DIM), keys)
    moved = moco.key_encoder.module[0].layers[0].weight
    torch.testing.assert_close(moved, torch.lerp(moco.encoder.layers[0].weight, before, 0.9))
    torch.testing.assert_close(moco.queue.rows[:N], F.normalize(keys))
    assert moco.queue.position == N


def test_moco_shuffles_what_batch_norm_sees():
    moco = build("moco", bn_splits=3)
    assert isinstance(moco.encoder.layers[1], SplitBatchNorm)
    assert isinstance(moco.key_encoder.module[0].layers[1], SplitBatchNorm)
    assert isinstance(moco.head[1], SplitBatchNorm)
    x_q, x_k = images(moco)
    (once,), (again,) = moco.targets(x_q, x_k), moco.targets(x_q, x_k)
    assert (once - again).abs().max() > 1e-3
    (once,), (again,) = moco.eval().targets(x_q, x_k), moco.targets(x_q, x_k)
    torch.testing.assert_close(once, again)


def test_moco_v3_is_symmetric_and_its_momentum_grows():
    moco = build("moco-v3", temperature=0.3)
    x0, x1 = images(moco)
    q0, q1 = (moco.predictor(moco.head(moco.encoder(x))) for x in (x0, x1))
    k0, k1 = (moco.key_encoder(x) for x in (x0, x1))
    same(moco(x0, x1), 2 * 0.3 * (in_batch(q0, k1, 0.3) + in_batch(q1, k0, 0.3)))
    momenta = []
    for progress in (0.0, 0.5, 1.0):
        moco.before_step(progress, 0.0)
        momenta.append(moco.key_momentum)
    assert momenta == pytest.approx([0.9, 0.95, 1.0])


def test_moco_v3_freezes_the_patch_embedding():
    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed, self.rest = nn.Linear(3, 16), nn.Linear(16, 16)

    head = projection_head("v1", 16, 32, DIM)
    moco = MoCoV3(Vit(), head, dim=DIM, freeze_patch_embedding=True)
    learns = {name for name, p in moco.named_parameters() if p.requires_grad}
    assert not any("patch_embed" in name for name in learns)
    assert "encoder.rest.weight" in learns
    with pytest.raises(UserError, match="this encoder has no patch_embed"):
        MoCoV3(SmallCNN(1, width=4), head, dim=DIM, freeze_patch_embedding=True)


# The others


def test_npid_tells_an_image_from_others_that_are_not_in_the_batch():
    npid = NPID(*parts("linear"), num_samples=N + 1, dim=DIM, negatives=5, temperature=0.3)
    (x,) = images(npid)
    indices = torch.tensor([4, 0, 7, 1, 9, 3, 2, 8, 5])
    v = npid.head(npid.encoder(x))
    other = npid.bank.rows[[6]].repeat(5, 1)  # the only one left
    loss = npid(x, indices=indices)
    same(loss, cross_entropy(v, npid.bank.rows[indices], other, 0.3))

    before = npid.bank.rows.clone()
    npid.after_step(v.detach(), indices=indices)
    moved = F.normalize((before[indices] + F.normalize(v.detach())) / 2)
    torch.testing.assert_close(npid.bank.rows[indices], moved)
    assert torch.equal(npid.bank.rows[6], before[6])


def test_nnclr_takes_the_nearest_of_the_queue_for_positive():
    nnclr = build("nnclr", temperature=0.3).eval()
    x0, x1 = images(nnclr)
    z0, z1 = (nnclr.head(nnclr.encoder(x)) for x in (x0, x1))
    p0, p1 = nnclr.predictor(z0), nnclr.predictor(z1)
    rows = nnclr.queue.rows
    n0, n1 = (rows[(F.normalize(z) @ rows.T).argmax(1)] for z in (z0, z1))
    same(nnclr(x0, x1), (in_batch(n1, p0, 0.3) + in_batch(n0, p1, 0.3)) / 2)
    nnclr.after_step(p0, p1, z0, z1)
    torch.testing.assert_close(nnclr.queue.rows[:N], F.normalize(z0.detach()))
    assert nnclr.queue.position == N


def test_supcon_attracts_a_class():
    supcon = SupCon(*parts("mlp"), temperature=0.3, base_temperature=0.2)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3, 3, 0])
    x0, x1 = images(supcon)
    z = F.normalize(supcon.head(supcon.encoder(torch.cat([x0, x1]))).double())
    logits = (z @ z.T / 0.3).fill_diagonal_(float("-inf"))
    positives = (labels.repeat(2)[:, None] == labels.repeat(2)).double().fill_diagonal_(0)
    log_p = logits.log_softmax(1).masked_fill(positives == 0, 0)
    expected = -(log_p.sum(1) / positives.sum(1)).mean() * 0.3 / 0.2
    same(supcon(x0, x1, labels=labels), expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_end_to_end_dictionary_is_the_batch(symmetric):
    method = EndToEnd(*parts("mlp"), temperature=0.3, symmetric=symmetric)
    x_q, x_k = images(method)
    q, k = (method.head(method.encoder(x)) for x in (x_q, x_k))
    expected = in_batch(q, k, 0.3)
    if symmetric:
        expected = (expected + in_batch(k, q, 0.3)) / 2
    same(method(x_q, x_k), expected)
