"""CIE Lab of sRGB (D65, 2°) and back, and the bins in which colours are counted."""

from __future__ import annotations

import torch
from torch import Tensor

# Linear sRGB to XYZ: rows X, Y, Z; and white.
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
# To X, Y, Z as shares of white's, and back.
OF_WHITE = [[weight / white for weight in row] for row, white in zip(XYZ, WHITE, strict=True)]
TO_SRGB = torch.linalg.inv(torch.tensor(OF_WHITE, dtype=torch.float64, device="cpu")).tolist()
OFFSET = 4 / 29

GRID = 10  # a bin's side, in units of a and b
# Of each a from −90 to 100, the least and the largest b among the 313 bins of Zhang et al. 2016.
AB_RANGES = (
    *((50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100)),
    *((-60, 100), (-70, 100), (-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80)),
    *((-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0)),
)


def rgb_to_lab(x: Tensor) -> Tensor:
    """CIE Lab of sRGB: ``L = 116 f(Y) − 16``, ``a = 500 (f(X) − f(Y))``, ``b = 200 (f(Y) − f(Z))``
    with X, Y, Z of linear light as shares of white's and ``f(t) = ∛t`` above 0.008856, else
    ``7.787 t + 4/29``.

    Args:
        x: float, shape [..., 3, H, W], in [0, 1].

    Returns:
        the same dtype and shape: L in [0, 100], a in [−87, 99], b in [−108, 95].
    """
    light = torch.where(x > 0.04045, ((x + 0.055) / 1.055).pow(2.4), x / 12.92)
    t = _mixed(light, OF_WHITE)
    f = torch.where(t > 0.008856, t.clamp(min=0.008856).pow(1 / 3), 7.787 * t + OFFSET)
    fx, fy, fz = f.unbind(dim=-3)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], dim=-3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """sRGB of CIE Lab, the inverse of :func:`rgb_to_lab`; colours that sRGB lacks are cut off.

    Args:
        lab: float, shape [..., 3, H, W].

    Returns:
        the same dtype and shape, in [0, 1].
    """
    lightness, a, b = lab.unbind(dim=-3)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, fy - b / 200], dim=-3)
    t = torch.where(f > 0.2068966, f.pow(3), (f - OFFSET) / 7.787)
    x = _mixed(t, TO_SRGB).clamp(0, 1)
    return torch.where(
        x > 0.0031308, 1.055 * x.clamp(min=0.0031308).pow(1 / 2.4) - 0.055, 12.92 * x
    )


def ab_bins() -> Tensor:
    """Centres of the 313 bins, float32 [313, 2], by a, then b, as Zhang et al. number them."""
    first = -90
    return torch.tensor(
        [
            (float(first + GRID * i), float(b))
            for i, (low, high) in enumerate(AB_RANGES)
            for b in range(low, high + 1, GRID)
        ]
    )


def _mixed(x: Tensor, matrix: list[list[float]]) -> Tensor:
    """[..., 3, H, W], each pixel's channels multiplied by a 3 × 3 matrix."""
    red, green, blue = x.unbind(dim=-3)
    return torch.stack([row[0] * red + row[1] * green + row[2] * blue for row in matrix], -3)
