"""Projection heads, as in SimCLR."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fastssl.errors import choose

HEADS = {"v1": 2, "v2": 3}  # layers


def projection_head(
    version: str, in_features: int, hidden: int = 2048, out_features: int = 128
) -> nn.Sequential:
    """g of SimCLR: linear layers with batch norm, ReLU between them, none after the last.

    Args:
        version: "v1", two layers (Chen et al. 2020, https://arxiv.org/abs/2002.05709), or "v2",
            three, of which the first is kept for fine-tuning (https://arxiv.org/abs/2006.10029).
        in_features: F, the width of the encoder's output.
        hidden: width of the layers before the last.
        out_features: D.

    Returns:
        A module from [B, F] to [B, D]. The last batch norm scales but does not shift, as in the
        authors' code.

    Raises:
        UserError: there is no such version.
    """
    if version not in HEADS:
        raise choose("head", version, list(HEADS))
    widths = [in_features] + [hidden] * (HEADS[version] - 1) + [out_features]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-2], ScaleNorm(out_features))


class ScaleNorm(nn.BatchNorm1d):
    """Batch norm of [B, D] with a learnt scale and no shift."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.ones_(self.weight)
