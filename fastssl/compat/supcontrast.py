"""The SupContrast repository's ``losses.py``."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from fastssl.functional import sup_con

__all__ = ["SupConLoss"]


class SupConLoss(nn.Module):
    """Supervised contrastive loss: ``SupConLoss(temperature=0.07)(features, labels)``.

    See :func:`fastssl.functional.sup_con`. It is the mean over all anchors: one without a positive
    counts, with loss 0.

    Args:
        temperature: positive float.
        contrast_mode: "all": every view is an anchor; "one": the first of each sample.
        base_temperature: the loss is multiplied by temperature / base_temperature.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: Literal["all", "one"] = "all",
        base_temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(
        self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The mean loss.

        Args:
            features: V normalised views of N samples, shape [N, V, D] or [N, V, ...].
            labels: a class for each sample, shape [N] or [N, 1]; None: each is its own.
            mask: only None.

        Returns:
            A float32 scalar (float64 for float64 inputs).

        Raises:
            NotImplementedError: a mask is given.
            ValueError: features or labels have other shapes.
        """
        if mask is not None:
            raise NotImplementedError(
                "mask: positives are found by class, never by a mask of N²; pass labels instead"
            )
        if features.dim() < 3:
            raise ValueError(f"features must have shape [N, V, ...], not {list(features.shape)}")
        n, views = features.shape[:2]
        features = features.reshape(n, views, -1)  # [N, V, D]
        if labels is None and views == 1:
            return (0 * features).sum()  # no anchor has a positive
        if labels is not None:
            labels = labels.reshape(-1).to(features.device)
        loss = sup_con(
            features,
            labels,
            self.temperature,
            self.base_temperature,
            contrast_mode=self.contrast_mode,
            reduction="none",
        )
        return loss.mean()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, contrast_mode={self.contrast_mode!r}, "
            f"base_temperature={self.base_temperature}"
        )
