"""From settings to a method."""

from __future__ import annotations

import torch
from torch import nn

from fastssl.data import mix
from fastssl.methods import METHODS, Method
from fastssl.nn import build_encoder, feature_width, projection_head
from fastssl.training.config import PARTICULAR, TrainConfig, arguments_of

WEIGHTS = 3  # what a seed is for; the trainer's are 0 to 2


def build_method(
    config: TrainConfig,
    image_shape: tuple[int, int, int],
    encoder: nn.Module | None = None,
    *,
    samples: int | None = None,
) -> Method:
    """The method with fresh weights, the same for the same seed.

    Args:
        config: its method, encoder, head, temperature, seed and the method's own settings are used.
        image_shape: C, H, W.
        encoder: in place of the one the config names; its weights stay as they are.
        samples: how many images there are to train on, for methods that remember each.
    """
    torch.manual_seed(mix(config.seed, WEIGHTS))
    if encoder is None:
        encoder = build_encoder(config.encoder, image_shape[0])
    width = feature_width(encoder, image_shape)
    head = projection_head(config.head, width, config.head_hidden, config.head_out)
    options = {name: getattr(config, name) for name in ("temperature", *PARTICULAR)}
    options |= {"dim": config.head_out, "num_samples": samples}
    taken = arguments_of(config.method)
    given = {k: v for k, v in options.items() if k in taken and v is not None}
    return METHODS[config.method](encoder, head, **given)
