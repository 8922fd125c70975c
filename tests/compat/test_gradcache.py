"""``fastssl.compat.gradcache`` against the gradient of one pass over the whole batch."""

from __future__ import annotations

import copy
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.compat.gradcache import GradCache
from fastssl.functional import info_nce


class Encoder(nn.Module):
    """Of one or two inputs, the second by position or by name."""

    def __init__(self, width=6, dropout=0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Dropout(dropout))

    def forward(self, x, mask=None):
        z = self.layers(x)
        return z if mask is None else z * mask


def contrastive(x, y, temperature=0.5):
    """Each x among all y; its own is the first of its group."""
    logits = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(x)) * (len(y) // len(x)))


def gradients(models):
    return [p.grad.clone() for model in models for p in model.parameters()]


def whole(models, loss, *calls):
    """Loss and gradients of one pass: each call is the model's arguments."""
    copies = copy.deepcopy(models)
    value = loss(*(model(*x) for model, x in zip(copies, calls, strict=True)))
    value.backward()
    return value.detach(), gradients(copies)


def check(cache, inputs, expected, **kwargs):
    value, right = expected
    mine = cache(*inputs, **kwargs)
    torch.testing.assert_close(mine, value)
    assert not mine.requires_grad
    for a, b in zip(gradients(cache.models), right, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sizes", [3, 100, [2, 8], [100, 5], [3, 100]], ids=str)
def test_two_models_of_different_batches(sizes):
    """12 queries and 36 passages, in chunks that do not divide them."""
    models = [Encoder(), Encoder()]
    x, y = torch.randn(12, 5), torch.randn(36, 5)
    expected = whole(models, contrastive, (x,), (y,))
    check(GradCache(models, sizes, contrastive), (x, y), expected)


def test_three_models_and_one():
    def loss(x, y, z):
        return contrastive(x, y) + contrastive(y, z, 0.3) * (x * z).mean()

    models = [Encoder(), Encoder(), Encoder()]
    inputs = torch.randn(3, 10, 5).unbind()
    expected = whole(models, loss, *((x,) for x in inputs))
    check(GradCache(models, [3, 4, 20], loss), inputs, expected)

    model = Encoder()
    x = torch.randn(10, 5)
    half = lambda z: info_nce(z[:5], z[5:])  # noqa: E731
    check(GradCache([model], 3, half), (x,), whole([model], half, (x,)))


def test_one_model_twice():
    model = Encoder()
    x, y = torch.randn(2, 9, 5)
    copied = copy.deepcopy(model)
    value = contrastive(copied(x), copied(y))
    value.backward()
    right = gradients([copied])
    mine = GradCache([model, model], [2, 4], contrastive)(x, y)
    torch.testing.assert_close(mine, value.detach())
    for a, b in zip(gradients([model]), right, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["list", "dict", "UserDict", "both"])
def test_inputs_of_every_kind(kind):
    models = [Encoder(), Encoder()]
    x, y, mask = torch.randn(8, 5), torch.randn(8, 5), torch.rand(8, 6)
    inputs = {
        "list": [x, mask],
        "dict": {"mask": mask, "x": x},
        "UserDict": UserDict({"x": x, "mask": mask}),
        "both": ([x], {"mask": mask}),
    }
    expected = whole(models, contrastive, (x, mask), (y,))
    check(GradCache(models, 3, contrastive), (inputs[kind], y), expected)


def test_representations_and_keyword_arguments():
    class Wrapped(Encoder):
        def forward(self, x):
            return {"pooled": super().forward(x)}

    models = [Wrapped(), Wrapped()]
    x, y = torch.randn(2, 8, 5)
    cache = GradCache(models, 3, contrastive, get_rep_fn=lambda out: out["pooled"])
    plain = [Encoder(), Encoder()]
    for one, other in zip(plain, models, strict=True):
        one.load_state_dict(other.state_dict())
    expected = whole(plain, lambda a, b: contrastive(a, b, 0.2), (x,), (y,))
    check(cache, (x, y), expected, temperature=0.2)


def test_dropout_is_the_same_in_both_passes():
    """Gradients are those of the embeddings that the loss saw."""
    models = [Encoder(dropout=0.5), Encoder(dropout=0.5)]
    seen = []
    for model in models:
        model.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    GradCache(models, 4, contrastive)(*torch.randn(2, 8, 5))
    first, second = seen[:2], seen[6:]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(seen[2:4], seen[4:6], strict=True):
        assert torch.equal(a, b)


def test_gradients_accumulate():
    models = [Encoder(), Encoder()]
    x, y = torch.randn(2, 8, 5)
    cache = GradCache(models, 3, contrastive)
    cache(x, y)
    once = gradients(models)
    cache(x, y)
    for a, b in zip(gradients(models), once, strict=True):
        torch.testing.assert_close(a, 2 * b)


def test_half_precision_scales_the_gradient():
    models = [Encoder(), Encoder()]
    x, y = torch.randn(2, 8, 5)
    value, right = whole(models, contrastive, (x,), (y,))
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    mine = GradCache(models, 3, contrastive, fp16=True, scaler=scaler)(x, y)
    torch.testing.assert_close(mine.float(), value, rtol=1e-2, atol=1e-2)
    for a, b in zip(gradients(models), right, strict=True):
        assert (a / 128 - b).norm() <= 2e-2 * b.norm()


def test_what_is_not_served_says_so():
    model, x = Encoder(), torch.randn(4, 5)
    with pytest.raises(NotImplementedError, match="split_input_fn"):
        GradCache([model], 2, contrastive, split_input_fn=torch.split)
    with pytest.raises(ValueError, match="fp16=True needs a scaler"):
        GradCache([model], 2, contrastive, fp16=True)
    with pytest.raises(ValueError, match="chunk_sizes must be 2, one a model, not 1"):
        GradCache([model, model], [2], contrastive)
    cache = GradCache([model, model], 2, contrastive)
    with pytest.raises(ValueError, match="model_inputs must be 2, one a model, not 1"):
        cache(x)
    with pytest.raises(NotImplementedError, match="not str"):
        cache("text", x)
    with pytest.raises(NotImplementedError, match="a tensor, a list or a dict of tensors"):
        cache({"x": 1}, x)
    with pytest.raises(ValueError, match="needs every model in DistributedDataParallel"):
        cache(x, x, no_sync_except_last=True)
