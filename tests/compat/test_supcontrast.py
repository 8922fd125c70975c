"""``fastssl.compat.supcontrast`` against the formula of SupContrast's loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.compat.supcontrast import SupConLoss
from tests.compat.agreement import DTYPES, TEMPERATURES, agrees

LABELS = {
    "none": None,
    "classes": torch.tensor([0, 1, 1, 2, 0, 0, 3, 2, 1, 4]),
    "one class": torch.zeros(10, dtype=torch.long),
}


def sup_con(features, labels, t, base, mode):
    n, views = features.shape[:2]
    features = features.flatten(2)
    rows = features.transpose(0, 1).flatten(0, 1)  # view by view
    anchors = features[:, 0] if mode == "one" else rows
    classes = (torch.arange(n) if labels is None else labels.flatten()).repeat(views)
    itself = torch.eye(len(rows), dtype=torch.bool)[: len(anchors)]
    logits = (anchors @ rows.T / t).masked_fill(itself, float("-inf"))
    log_p = (logits - logits.logsumexp(dim=1, keepdim=True)).masked_fill(itself, 0.0)
    positive = (classes[: len(anchors), None] == classes) & ~itself
    mean = (log_p * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return -(t / base) * mean.mean()


def features(n, views, d, dtype=torch.float32):
    return F.normalize(torch.randn(n, 1, d) + torch.randn(n, views, d), dim=-1).to(dtype)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("views", [1, 2, 3])
def test_is_supcontrasts(views, labels, mode, temperature):
    loss = SupConLoss(temperature, mode, base_temperature=0.1)
    for dtype in DTYPES:
        agrees(
            lambda z: loss(z, LABELS[labels]),
            lambda z: sup_con(z, LABELS[labels], temperature, 0.1, mode),
            features(10, views, 12, dtype),
        )


def test_defaults_shapes_and_columns_of_labels():
    loss = SupConLoss()
    labels = LABELS["classes"][:, None]
    z = features(10, 2, 12).view(10, 2, 3, 4)
    agrees(lambda z: loss(z, labels), lambda z: sup_con(z, labels, 0.07, 0.07, "all"), z)
    agrees(lambda z: loss(z), lambda z: sup_con(z, None, 0.07, 0.07, "all"), z)


def test_wrong_arguments_are_named():
    with pytest.raises(NotImplementedError, match="pass labels instead"):
        SupConLoss()(features(4, 2, 3), mask=torch.eye(4))
    with pytest.raises(ValueError, match=r"features must have shape \[N, V, ...\], not \[4, 3\]"):
        SupConLoss()(torch.randn(4, 3))
    with pytest.raises(ValueError, match="labels must have shape"):
        SupConLoss()(features(4, 2, 3), torch.arange(5))
    with pytest.raises(ValueError, match="contrast_mode"):
        SupConLoss(contrast_mode="some")(features(4, 2, 3))
