"""augment and augment_parameters by CUDA C++ on a CUDA device: the reference's, capturable."""

from __future__ import annotations

import pytest
import torch

import fastssl
from fastssl import backends
from fastssl.augment import simclr
from fastssl.ops import Packed, augment, augment_parameters
from tests.ops.test_augment import EVERYTHING, QUANTIZED, pictures


@pytest.fixture(autouse=True)
def by_triton():
    """Native instead, in this file: Triton has no such op."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = backends.why_not("native", "augment", "cuda")
    if reason:
        pytest.fail(reason)
    with backends.use_backend("native"):
        yield


@QUANTIZED
@pytest.mark.parametrize("colours", [3, 1])
@pytest.mark.parametrize("size", [(24, 24), (224, 224), (1, 1), (3, 9000)], ids=str)
def test_is_the_reference(size, colours, quantized):
    images = Packed.of(pictures(40, colours, largest=400))
    p = augment_parameters(images.sizes, torch.arange(40), 7, 0, size, EVERYTHING)
    p[:, 6] *= size[0] == size[1]  # turns
    options = dict(taps=min(23, 2 * min(size) - 1), quantized=quantized)
    there = Packed(images.data.cuda(), images.offsets.cuda(), images.sizes.cuda(), colours)
    mine = augment(there, p.cuda(), size, **options).cpu()
    with fastssl.use_backend("reference"):
        true = augment(images, p, size, **options)
    away = (mine - true).abs()
    assert away.max() <= (1.1 / 255 if quantized else 1e-5)
    assert not quantized or (away > 0.5 / 255).float().mean() <= 1e-4


def test_parameters_to_the_bit():
    sizes = torch.randint(1, 700, (3000, 2))
    samples = torch.randint(0, 2**62, (3000,))
    drawn = augment_parameters(sizes.cuda(), samples.cuda(), 2**64 - 1, 3, (96, 97), EVERYTHING)
    right = augment_parameters(sizes, samples, 2**64 - 1, 3, (96, 97), EVERYTHING)
    assert torch.equal(drawn.cpu(), right)


def test_layouts_and_a_graph():
    images = torch.randint(0, 256, (8, 3, 50, 60), dtype=torch.uint8, device="cuda")
    indices, recipe = torch.arange(8, device="cuda"), simclr(32)
    drawn = recipe.parameters(images, indices, 1)
    one = recipe.apply(images, drawn)[0]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for last in (False, True):
            made = recipe.apply(images, drawn, dtype=dtype, channels_last=last)[0]
            assert torch.equal(made, one.to(dtype))
    graph = torch.cuda.CUDAGraph()
    offsets = torch.arange(8, device="cuda") * images[0].numel()
    sizes = torch.tensor([[50, 60]] * 8, device="cuda")
    packed = Packed(images.view(-1), offsets, sizes)
    fwd = torch.ops.fastssl.augment_fwd
    arguments = (packed.data, offsets, sizes, 3, True, drawn[0], 32, 32, 3, [0.0] * 3, [1.0] * 3)
    right = fwd(*arguments, False, torch.float32, False)
    with torch.cuda.graph(graph):
        out = fwd(*arguments, False, torch.float32, False)
    graph.replay()
    assert torch.equal(out, right)
