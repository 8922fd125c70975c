"""Fine-tuning: the encoder and a linear layer learn from labels, all of them or few."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.data import Images
from fastssl.errors import UserError
from fastssl.evaluation.few_labels import draw_share
from fastssl.evaluation.fitting import (
    Augment,
    Fitting,
    Transform,
    classifier,
    example_of,
    fit,
)
from fastssl.functional.common import loss_dtype


def fine_tune(
    encoder: nn.Module,
    images: Tensor | Images,
    labels: Tensor,
    fitting: Fitting = Fitting(),  # noqa: B008, it is frozen
    *,
    share: float = 1.0,
    transform: Transform | None = None,
    augment: Augment | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> nn.Sequential:
    """Train a copy of an encoder with a linear layer on labelled images.

        min over encoder and W, b  of  mean_i −log softmax(W f(x_i) + b)_{y_i}

    With ``share`` 0.01 or 0.1 this is the semi-supervised setting: features from all images, labels
    of a few. SimCLR v2 then keeps the first layer of its projection head as part of the encoder:
    pass ``nn.Sequential(encoder, fastssl.nn.first_layers(head, 1))``.

    Args:
        encoder: on ``device``, maps float [B, C, H', W'] to [B, F] or to what flattens to it. It
            stays as it is, batch norm's running statistics included; all of its copy learns.
        images: uint8 [N, C, H, W] (read as k/255) or floating in [0, 1]; or
            :class:`fastssl.data.Images`, which are read batch by batch.
        labels: int64 [N], the classes 0 … C − 1.
        fitting: epochs, rate, optimiser, and how batch norm behaves.
        share: of each class's labels that is used, drawn by ``seed``; above 0, at most 1.
        transform: maps a float32 batch in [0, 1] to the encoder's input; None: nothing.
        augment: in place of ``transform`` while training: from uint8 images, their indices and a
            seed to random views as the encoder takes them. SimCLR: crops and flips alone, as a
            recipe's ``gentle()``; see :func:`fit`.
        device: where the encoder is.
        seed: of the labels drawn, of batches, views and dropout. On a CPU the same seed gives the
            same weights bit for bit.
        progress: show a progress bar on stderr.

    Returns:
        The classifier, from the encoder's input to logits [B, C], in evaluation mode: ``encoder``,
        ``flatten`` and ``linear`` in sequence. The encoder's arithmetic; logits are not normalised.

    Raises:
        ValueError: images and labels that do not match, negative labels.
        UserError: fewer than two classes, a share that leaves a class without a label, a loss that
            is no longer finite.

    Chen et al. 2020, https://arxiv.org/abs/2006.10029, section 2.
    """
    example = example_of(images, transform, device)
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise ValueError(
            f"labels must be int64 [{len(images)}], got {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.cpu()
    if labels.min() < 0:
        raise ValueError(f"labels must be 0 or more, got {labels.min().item()}")
    if labels.min() == labels.max():
        raise UserError("at least two classes are needed to fine-tune, there is one")
    rows = None if share == 1 else draw_share(labels, share, seed=seed)
    model = classifier(encoder, int(labels.max()) + 1, example)

    def cross_entropy(logits: Tensor, _: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(logits.to(loss_dtype(logits)), labels[rows].to(logits.device))

    fit(
        model,
        images,
        cross_entropy,
        fitting,
        rows=rows,
        transform=transform,
        augment=augment,
        device=device,
        seed=seed,
        title="fine-tuning",
        progress=progress,
    )
    return model
