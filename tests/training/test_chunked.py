"""The chunked gradient is that of the whole batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.functional import nt_xent
from fastssl.methods import SimCLR
from fastssl.nn import SmallCNN, projection_head
from fastssl.training import chunked_backward

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


class Embed(nn.Module):
    """Views in, embeddings out; layers as asked for."""

    def __init__(self, *extra: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            *extra,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 16),
        )

    def forward(self, *views):
        return tuple(self.layers(view) for view in views)


def views(n, device="cpu"):
    return [torch.rand(n, 1, 6, 6).to(device) for _ in range(2)]


def gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()]).double()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "chunk"), [(24, 8), (23, 5), (7, 1), (6, 6), (6, 100), (9, None)])
def test_equals_the_unchunked_gradient(n, chunk, device):
    chunked = Embed().to(device)
    whole = copy.deepcopy(chunked)
    inputs = views(n, device)
    loss = chunked_backward(chunked, nt_xent, inputs, chunk)
    expected = nt_xent(*whole(*inputs))
    expected.backward()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    assert relative(gradients(chunked), gradients(whole)) < 1e-5


def test_equals_the_unchunked_gradient_of_simclr_in_evaluation_mode():
    """All of the real thing, batch norm by its running statistics."""
    chunked = SimCLR(SmallCNN(1, width=8), projection_head("v1", 32, 64, 16)).eval()
    whole = copy.deepcopy(chunked)
    inputs = views(12)
    chunked_backward(_Of(chunked), chunked.loss, inputs, 5)
    whole(*inputs).backward()
    assert relative(gradients(chunked), gradients(whole)) < 1e-5


class _Of(nn.Module):
    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, *views):
        return self.method.embed(*views)


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_is_replayed(device):
    """Against one graph over the same chunks in the same order: the same masks."""
    chunked = Embed(nn.Dropout(0.5)).to(device)
    whole = copy.deepcopy(chunked)
    inputs = views(12, device)
    torch.manual_seed(3)
    chunked_backward(chunked, nt_xent, inputs, 4)
    after = torch.rand(3), torch.rand(3, device=device)

    torch.manual_seed(3)
    parts = [whole(*chunk) for chunk in zip(*(x.split(4) for x in inputs), strict=True)]
    nt_xent(*(torch.cat(z) for z in zip(*parts, strict=True))).backward()
    assert relative(gradients(chunked), gradients(whole)) < 1e-5
    # and the generators stand where one pass leaves them
    torch.testing.assert_close(after, (torch.rand(3), torch.rand(3, device=device)))


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("chunk", [8, 5])
def test_batch_norm_statistics_move_once(momentum, chunk):
    embed = Embed(nn.BatchNorm2d(8, momentum=momentum))
    norm = embed.layers[1]
    x = torch.rand(24, 1, 6, 6)
    for step in (1, 2):
        before = norm.running_mean.clone(), norm.running_var.clone()
        chunked_backward(embed, lambda z: z.square().mean(), [x], chunk)
        assert norm.num_batches_tracked == step
        with torch.no_grad():
            h = [embed.layers[0](part) for part in x.split(chunk)]
        share = torch.tensor([len(part) / 24 for part in h])
        mean = share @ torch.stack([part.mean(dim=(0, 2, 3)) for part in h])
        var = share @ torch.stack([part.transpose(0, 1).flatten(1).var(dim=1) for part in h])
        m = momentum if momentum is not None else 1 / step
        torch.testing.assert_close(norm.running_mean, torch.lerp(before[0], mean, m))
        torch.testing.assert_close(norm.running_var, torch.lerp(before[1], var, m))
        embed.zero_grad()


def test_buffers_without_statistics_stay_bit_for_bit():
    embed = Embed()
    table = torch.tensor([0.1, float("inf"), float("-inf"), 1e30])
    embed.register_buffer("table", table.clone())
    chunked_backward(embed, nt_xent, views(9), 2)
    assert torch.equal(embed.table, table)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, device):
    class Cast(Embed):
        def forward(self, *views):
            with torch.autocast(device, dtype):
                return super().forward(*views)

    chunked = Cast().to(device)
    whole = copy.deepcopy(chunked)
    inputs = views(12, device)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    chunked_backward(chunked, nt_xent, inputs, 4, scale=scaler.scale)
    z = whole(*inputs)
    assert z[0].dtype == dtype
    scaler.scale(nt_xent(*z)).backward()
    epsilon = torch.finfo(dtype).eps
    assert relative(gradients(chunked), gradients(whole)) < 4 * epsilon


def test_autocast_around_the_call():
    chunked = Embed()
    whole = copy.deepcopy(chunked)
    inputs = views(12)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_backward(chunked, nt_xent, inputs, 4)
        nt_xent(*whole(*inputs)).backward()
    assert relative(gradients(chunked), gradients(whole)) < 0.03


def test_a_compiled_module():
    chunked = Embed(nn.BatchNorm2d(8))
    plain = copy.deepcopy(chunked)
    inputs = views(8)
    chunked.layers.compile(backend="aot_eager")
    chunked_backward(chunked, nt_xent, inputs, 4)
    chunked_backward(plain, nt_xent, inputs, 4)
    assert relative(gradients(chunked), gradients(plain)) < 1e-5
    torch.testing.assert_close(chunked.state_dict(), plain.state_dict())


def test_a_learnt_temperature_and_an_accumulated_gradient():
    embed = Embed()
    temperature = torch.tensor(0.5, requires_grad=True)
    inputs = views(8)

    def loss(z0, z1):
        return nt_xent(z0, z1, temperature)

    chunked_backward(embed, loss, inputs, 3)
    once = temperature.grad.clone(), gradients(embed)
    chunked_backward(embed, loss, inputs, 8)
    torch.testing.assert_close(temperature.grad, 2 * once[0])
    torch.testing.assert_close(gradients(embed), 2 * once[1])


def test_inputs_of_several_kinds_and_an_embedding_the_loss_ignores():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text = nn.Linear(5, 4), nn.Linear(3, 4)

        def forward(self, image, text):
            return self.image(image), self.text(text), self.text(text) * 2

    pair = Pair()
    chunked_backward(pair, lambda a, b, _: nt_xent(a, b), [torch.rand(7, 5), torch.rand(7, 3)], 3)
    assert all(p.grad.abs().sum() > 0 for p in pair.parameters())


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_must_be_positive(chunk):
    with pytest.raises(ValueError, match="chunk_size must be positive"):
        chunked_backward(Embed(), nt_xent, views(4), chunk)


def test_inputs_must_match():
    with pytest.raises(ValueError, match="one length"):
        chunked_backward(Embed(), nt_xent, [torch.rand(4, 1, 6, 6), torch.rand(3, 1, 6, 6)], 2)
    with pytest.raises(ValueError, match="one length"):
        chunked_backward(Embed(), nt_xent, [], 2)
