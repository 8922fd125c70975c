"""ResNet-18 and ResNet-50, with the stem for large images or for CIFAR's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.errors import choose

STEMS = ("imagenet", "cifar")


def conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """relu(shortcut(x) + residual(x))."""

    def __init__(self, residual: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        nn.init.zeros_(residual[-1].weight)  # type: ignore[arg-type]  # each block starts as identity

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


def basic(in_channels: int, width: int, stride: int) -> Block:
    """Two 3×3 convolutions."""
    residual = nn.Sequential(
        conv(in_channels, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width, 3),
        nn.BatchNorm2d(width),
    )
    return Block(residual, shortcut(in_channels, width, stride))


def bottleneck(in_channels: int, width: int, stride: int) -> Block:
    """1×1, 3×3 (with the stride, as torchvision has it), 1×1 to 4 times the width."""
    residual = nn.Sequential(
        conv(in_channels, width, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, width, 3, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        conv(width, 4 * width, 1),
        nn.BatchNorm2d(4 * width),
    )
    return Block(residual, shortcut(in_channels, 4 * width, stride))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        depths: blocks in each of the four stages.
        expanded: bottleneck blocks (F = 2048) rather than basic ones (F = 512).
        stem: "imagenet": a 7×7 convolution of stride 2 and a max-pool; "cifar": one 3×3
            convolution, no pool, as SimCLR uses it for 32×32 images.
        in_channels: C.

    Shape:
        [B, C, H, W] to [B, F].

    He et al. 2015, https://arxiv.org/abs/1512.03385
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        *,
        expanded: bool,
        stem: str = "imagenet",
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise choose("stem", stem, list(STEMS))
        if stem == "cifar":
            self.stem = nn.Sequential(conv(in_channels, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        else:
            self.stem = nn.Sequential(
                conv(in_channels, 64, 7, 2),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            )
        block, expansion = (bottleneck, 4) if expanded else (basic, 1)
        blocks: list[nn.Module] = []
        channels = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            for i in range(depth):
                blocks.append(block(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width * expansion
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


def resnet18(stem: str = "imagenet", in_channels: int = 3) -> ResNet:
    """ResNet-18, F = 512; see :class:`ResNet`."""
    return ResNet((2, 2, 2, 2), expanded=False, stem=stem, in_channels=in_channels)


def resnet50(stem: str = "imagenet", in_channels: int = 3) -> ResNet:
    """ResNet-50, F = 2048; see :class:`ResNet`."""
    return ResNet((3, 4, 6, 3), expanded=True, stem=stem, in_channels=in_channels)
