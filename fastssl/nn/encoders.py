"""Encoders by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn

from fastssl.errors import UserError, choose
from fastssl.nn.resnet import basic, conv, resnet18, resnet50


class SmallCNN(nn.Module):
    """Four 3×3 convolutions with batch norm, for images of 8 to 32 pixels; F = 4·width.

    Args:
        in_channels: C.
        width: channels of the first convolution; each later stage doubles them up to 4·width.

    Shape:
        [B, C, H, W] to [B, 4·width].
    """

    def __init__(self, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        channels = [in_channels, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(channels)):
            stride = 2 if i in (1, 2) else 1
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))


class SmallResNet(nn.Module):
    """Two residual blocks for strokes on 12 to 32 pixels, F = 2·width; the default for digits.

    A 4×4 convolution of stride 2 reads the strokes, a 3×3 one of stride 2 stands between the
    blocks, and the maximum over places asks where each feature is strongest: on digits it served
    better than the mean (bench/results/digits_recipe.md).

    Args:
        in_channels: C.
        width: channels of the first half; the second has twice as many.

    Shape:
        [B, C, H, W] to [B, 2·width].
    """

    def __init__(self, in_channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            basic(width, width, 1),
            conv(width, 2 * width, 3, 2),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            basic(2 * width, 2 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).amax(dim=(2, 3))


ENCODERS: dict[str, Callable[[int], nn.Module]] = {  # name: from in_channels to a module
    "small-cnn": lambda channels: SmallCNN(channels),
    "resnet18": lambda channels: resnet18("imagenet", channels),
    "resnet18-cifar": lambda channels: resnet18("cifar", channels),
    "resnet50": lambda channels: resnet50("imagenet", channels),
    "resnet50-cifar": lambda channels: resnet50("cifar", channels),
    "small-resnet": lambda channels: SmallResNet(channels),
}


def build_encoder(name: str, in_channels: int) -> nn.Module:
    """The encoder of that name, freshly initialised: from [B, C, H, W] to [B, F].

    Args:
        name: one of ``ENCODERS``, or ``timm:NAME``, or ``torchvision:NAME`` where those packages
            are installed (never with downloaded weights).
        in_channels: C; torchvision's models take 3 only.

    Raises:
        UserError: there is no such encoder, its package is missing, or it does not take C channels.
    """
    package, colon, model = name.partition(":")
    if not colon:
        if name not in ENCODERS:
            raise choose("encoder", name, [*ENCODERS, "timm:NAME", "torchvision:NAME"])
        return ENCODERS[name](in_channels)
    if package == "timm":
        timm = _package("timm", name)
        if not timm.is_model(model):
            raise UserError(f"timm {timm.__version__} has no model {model!r}")
        vit = timm.models.is_model_in_modules(model, ("vision_transformer", "deit"))
        options = {"dynamic_img_size": True} if vit else {}  # small crops beside large ones
        return timm.create_model(
            model, pretrained=False, in_chans=in_channels, num_classes=0, **options
        )
    if package == "torchvision":
        models = _package("torchvision", name).models
        if model not in models.list_models(module=models):
            raise UserError(f"torchvision.models has no classifier {model!r}")
        if in_channels != 3:
            raise UserError(f"{name} takes 3 channels, these images have {in_channels}")
        return _without_classifier(models.get_model(model, weights=None))
    raise choose("encoder", name, [*ENCODERS, "timm:NAME", "torchvision:NAME"])


def feature_width(encoder: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """F of an encoder that maps [B, C, H, W] to [B, F], found by a pass over two blank images.

    Args:
        encoder: on any device; left in the mode and the state in which it was.
        image_shape: C, H, W.

    Raises:
        UserError: it fails on images of that shape, or does not return [B, F].
    """
    parameter = next(encoder.parameters(), torch.empty(0))
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            h = encoder(torch.zeros(2, *image_shape, device=parameter.device))
    except (RuntimeError, AssertionError) as error:  # torchvision's ViTs assert their size
        first = str(error).splitlines()[0]
        raise UserError(f"the encoder fails on images of shape {image_shape}: {first}") from error
    finally:
        encoder.train(training)
    if not isinstance(h, Tensor) or h.dim() != 2 or h.shape[0] != 2:
        got = list(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise UserError(f"an encoder must map [B, C, H, W] to [B, F]; from B = 2 it made {got}")
    return h.shape[1]


def _package(package: str, wanted_for: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f"{wanted_for} needs {package}: pip install {package}") from error
    except RuntimeError as error:  # as torchvision raises, built for another torch
        raise UserError(f"{wanted_for}: {package} is there but broken: {error}") from error


def _without_classifier(model: nn.Module) -> nn.Module:
    """A torchvision classifier whose last linear layer is the identity."""
    name = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model
