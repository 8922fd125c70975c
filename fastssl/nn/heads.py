"""Projection and prediction heads."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from fastssl.errors import UserError, choose

HEADS = {  # layers
    **{"v1": 2, "v2": 3, "linear": 1, "mlp": 2, "mlp-bn": 2, "dino": 3},
    **{"expander": 3, "simsiam": 3},
}
NORMED = ("v1", "v2", "mlp-bn", "expander", "simsiam")


def projection_head(
    version: str, in_features: int, hidden: int = 2048, out_features: int = 128
) -> nn.Sequential:
    """g: linear layers with ReLU (DINO: GELU) between them, none after the last.

    Args:
        version: SimCLR's, with batch norm after each layer: "v1", two layers (Chen et al. 2020,
            https://arxiv.org/abs/2002.05709), or "v2", three, of which the first is kept for
            fine-tuning (https://arxiv.org/abs/2006.10029). "mlp-bn", two layers with batch norm
            between them, as in BYOL and SwAV; "expander", three, as in Barlow Twins and VICReg;
            "simsiam", three, and one more, without scale or shift, at the end. Without: "linear",
            one layer, as in MoCo v1 and NPID; "mlp", two, as in MoCo v2 and SupCon; "dino", three
            (Caron et al. 2021, https://arxiv.org/abs/2104.14294), whose output prototypes are to
            follow.
        in_features: F, the width of the encoder's output.
        hidden: width of the layers before the last.
        out_features: D.

    Returns:
        A module from [B, F] to [B, D]. SimCLR's last batch norm scales but does not shift, as in
        the authors' code.

    Raises:
        UserError: there is no such version.
    """
    if version not in HEADS:
        raise choose("head", version, list(HEADS))
    widths = [in_features] + [hidden] * (HEADS[version] - 1) + [out_features]
    layers: list[nn.Module] = []
    simclr, normed = version in ("v1", "v2"), version in NORMED
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=not simclr)]
        layers += [nn.BatchNorm1d(width_out)] if normed else []
        layers += [nn.GELU() if version == "dino" else nn.ReLU()]
    layers = layers[: -2 if normed else -1]
    if simclr:
        layers += [ScaleNorm(out_features)]
    if version == "simsiam":
        layers += [nn.BatchNorm1d(out_features, affine=False)]
    if version == "dino":
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def first_layers(head: nn.Sequential, layers: int) -> nn.Sequential:
    """The first linear layers of a projection head, each with the norm and ReLU that follow it.

    SimCLR v2 fine-tunes ``nn.Sequential(encoder, first_layers(head, 1))``. The modules are the
    head's own, not copies.

    Args:
        head: a module of :func:`projection_head`.
        layers: from 1 to all but the last, which makes the embeddings that the loss compares.

    Raises:
        UserError: the head has no such layers.

    Chen et al. 2020, https://arxiv.org/abs/2006.10029, section 2
    """
    starts = [i for i, module in enumerate(head) if isinstance(module, nn.Linear)]
    if not 1 <= layers < len(starts):
        raise UserError(
            f"all but the last of a head's {len(starts)} layers can be kept, not {layers}"
        )
    return nn.Sequential(*list(head)[: starts[layers]])


def prediction_head(features: int, hidden: int = 4096) -> nn.Sequential:
    """h of NNCLR, MoCo v3 and BYOL, from [B, D] to [B, D]: two linear layers, batch norm and ReLU
    between them."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, features),
    )


class ScaleNorm(nn.BatchNorm1d):
    """Batch norm of [B, D] with a learnt scale and no shift."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        nn.init.ones_(self.weight)
