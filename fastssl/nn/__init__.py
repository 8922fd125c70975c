"""Encoders, heads, and what methods keep beside them: memories and momentum encoders."""

from fastssl.nn.batch_norm import SplitBatchNorm, shuffled, split_batch_norm
from fastssl.nn.ema import EMA, cosine_momentum
from fastssl.nn.encoders import ENCODERS, SmallCNN, SmallResNet, build_encoder, feature_width
from fastssl.nn.heads import HEADS, first_layers, prediction_head, projection_head
from fastssl.nn.memory import MemoryBank, MemoryQueue
from fastssl.nn.momentum import MomentumEncoder
from fastssl.nn.prototypes import Prototypes
from fastssl.nn.resnet import ResNet, resnet18, resnet50

__all__ = [
    "EMA",
    "ENCODERS",
    "HEADS",
    "MemoryBank",
    "MemoryQueue",
    "MomentumEncoder",
    "Prototypes",
    "ResNet",
    "SmallCNN",
    "SmallResNet",
    "SplitBatchNorm",
    "build_encoder",
    "cosine_momentum",
    "feature_width",
    "first_layers",
    "prediction_head",
    "projection_head",
    "resnet18",
    "resnet50",
    "shuffled",
    "split_batch_norm",
]
