"""Encoders by name, and heads."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fastssl.errors import UserError
from fastssl.nn import (
    ENCODERS,
    ResNet,
    SmallCNN,
    build_encoder,
    feature_width,
    projection_head,
    resnet18,
    resnet50,
)


def working_torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # the latter where it is built for another torch
        pytest.skip(f"no working torchvision: {error}")
    return torchvision


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", list(ENCODERS))
def test_every_encoder_gives_rows(name):
    channels = 1 if "cifar" in name else 3
    encoder = build_encoder(name, channels)
    width = feature_width(encoder, (channels, 16, 16))
    assert encoder.training
    assert encoder(torch.rand(3, channels, 16, 16)).shape == (3, width)
    if name.startswith("resnet"):
        assert width == (512 if "18" in name else 2048)


def test_resnets_have_the_published_number_of_parameters():
    classifier = 1000 * 513, 1000 * 2049
    assert parameters(resnet18()) == 11_689_512 - classifier[0]
    assert parameters(resnet50()) == 25_557_032 - classifier[1]


def test_stems():
    x = torch.rand(2, 3, 32, 32)
    assert resnet18("imagenet").stem(x).shape == (2, 64, 8, 8)
    assert resnet18("cifar").stem(x).shape == (2, 64, 32, 32)
    with pytest.raises(UserError, match="no stem 'vit'; there are: imagenet, cifar"):
        ResNet((1, 1, 1, 1), expanded=False, stem="vit")


@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v3_small"])
def test_torchvision(model):
    working_torchvision()
    encoder = build_encoder(f"torchvision:{model}", 3)
    assert feature_width(encoder, (3, 64, 64)) in (512, 1024)
    with pytest.raises(UserError, match="no classifier 'nothing'"):
        build_encoder("torchvision:nothing", 3)
    with pytest.raises(UserError, match="takes 3 channels, these images have 1"):
        build_encoder("torchvision:resnet18", 1)


def test_our_resnet_is_torchvisions():
    """The same function of the same weights, in the order they are defined."""
    torchvision = working_torchvision()
    theirs = torchvision.models.resnet50()
    theirs.fc = nn.Identity()
    ours = resnet50()

    def ordered(module):  # torchvision defines a shortcut after its block, as we do
        return [(key.rsplit(".", 1)[-1], value) for key, value in module.state_dict().items()]

    assert [(k, v.shape) for k, v in ordered(ours)] == [(k, v.shape) for k, v in ordered(theirs)]
    keys = list(ours.state_dict())
    ours.load_state_dict(dict(zip(keys, theirs.state_dict().values(), strict=True)))
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_timm():
    pytest.importorskip("timm")
    assert feature_width(build_encoder("timm:resnet18", 1), (1, 64, 64)) == 512
    vit = build_encoder("timm:vit_tiny_patch16_224", 1)
    assert [vit(torch.rand(2, 1, side, side)).shape for side in (224, 96)] == [(2, 192)] * 2
    with pytest.raises(UserError, match="has no model 'nothing'"):
        build_encoder("timm:nothing", 3)


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs {package}: pip install {package}"):
        build_encoder(f"{package}:resnet18", 3)


def test_feature_width_leaves_the_encoder_alone():
    encoder = SmallCNN(1)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    feature_width(encoder, (1, 16, 16))
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize("name", ["small-cnn", "small-resnet", "resnet18", "resnet18-cifar"])
def test_crops_of_any_size(name):
    encoder = build_encoder(name, 1)
    assert len({encoder(torch.rand(2, 1, side, side)).shape for side in (8, 14, 33, 96)}) == 1


def test_dinos_head():
    head = projection_head("dino", 10, 32, 8)
    assert [type(layer) for layer in head] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert all((layer.bias == 0).all() and layer.weight.std() < 0.025 for layer in head[::2])


def test_the_head_with_one_batch_norm():
    kinds = [type(layer) for layer in projection_head("mlp-bn", 10, 32, 8)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(("version", "layers"), [("v1", 2), ("v2", 3)])
def test_heads(version, layers):
    head = projection_head(version, 10, 32, 8)
    assert sum(isinstance(layer, nn.Linear) for layer in head) == layers
    assert head(torch.rand(5, 10)).shape == (5, 8)
    assert not any(isinstance(layer, nn.ReLU) for layer in head[-2:])
    assert head[-1].bias is None


def test_the_heads_defaults_are_the_papers():
    shapes = [tuple(p.shape) for p in projection_head("v1", 512).parameters() if p.dim() == 2]
    assert shapes == [(2048, 512), (128, 2048)]
    with pytest.raises(UserError, match="no head 'v3'"):
        projection_head("v3", 8)
