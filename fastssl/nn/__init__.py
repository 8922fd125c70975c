"""Encoders and heads."""

from fastssl.nn.encoders import ENCODERS, SmallCNN, SmallResNet, build_encoder, feature_width
from fastssl.nn.heads import HEADS, projection_head
from fastssl.nn.resnet import ResNet, resnet18, resnet50

__all__ = [
    "ENCODERS",
    "HEADS",
    "ResNet",
    "SmallCNN",
    "SmallResNet",
    "build_encoder",
    "feature_width",
    "projection_head",
    "resnet18",
    "resnet50",
]
