"""``open_clip.loss``, as of open_clip_torch 3.3."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.distributed import Ranks, agree
from fastssl.functional import clip_loss, siglip_loss
from fastssl.functional.common import loss_dtype
from fastssl.functional.image_text import check_image_text
from fastssl.ops import similarity_lse

__all__ = ["ClipLoss", "SigLipLoss"]


class ClipLoss(nn.Module):
    """CLIP's loss: ``ClipLoss()(image_features, text_features, logit_scale)``.

    See :func:`fastssl.functional.clip_loss`. No logits are written, so there are no ``get_logits``
    and ``get_ground_truth``; a class that derives from open_clip's to use them needs open_clip's.

    Over several ranks the value is the mean over all pairs, the same on each; gradients are as in
    open_clip. That of the features is the whole loss's with gather_with_grad; without, it is 1/W of
    that on W ranks, or with local_loss that of each rank's own features among the others' as
    constants.

    Args:
        local_loss, gather_with_grad: see above.
        cache_labels: means nothing: there are no labels to cache.
        rank: means nothing: the process group knows.
        world_size: W, of the default process group.
        use_horovod: only False.

    Raises:
        NotImplementedError: Horovod.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise NotImplementedError("use_horovod=True: ranks meet by torch.distributed only")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The mean over both directions.

        Args:
            image_features, text_features: shape [N, D], normalised.
            logit_scale, logit_bias: as for :func:`fastssl.functional.clip_loss`, or shape [1].
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            A float32 scalar (float64 for float64 inputs), or the dict.

        Raises:
            ValueError: world_size is not the process group's.
        """
        scale, bias = _scalar(logit_scale), _scalar(logit_bias)
        ranked = _ranked(self.world_size)
        if ranked and not self.gather_with_grad:
            if self.local_loss:
                loss = _among_constants(image_features, text_features, scale, bias)
                return {"contrastive_loss": loss} if output_dict else loss
            image_features, text_features = (
                x.detach() + (x - x.detach()) / self.world_size  # x, with a gradient of 1/W
                for x in (image_features, text_features)
            )
        loss = clip_loss(image_features, text_features, scale, logit_bias=bias, group=ranked)
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's loss: ``SigLipLoss()(image_features, text_features, logit_scale, logit_bias)``.

    See :func:`fastssl.functional.siglip_loss`. Over several ranks the value is that of the whole
    batch, the same on each (open_clip's is over a rank's own images), and so are the gradients.

    Args:
        cache_labels: means nothing: there are no labels to cache.
        rank: means nothing: the process group knows.
        world_size: of the default process group.
        dist_impl: "bidir" or "shift": texts go around a ring; "reduce" or "gather": every rank
            gathers them; None: "bidir".
        chunk_size: means nothing: the loss is streamed anyway.

    Raises:
        ValueError: an unknown dist_impl.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(
                f'dist_impl must be "bidir", "shift", "reduce", "gather" or None, not {dist_impl!r}'
            )
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"
        self.chunk_size = chunk_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """The sum over all pairs, over N.

        Args:
            image_features, text_features: shape [N, D], normalised.
            logit_scale, logit_bias: as for :func:`fastssl.functional.siglip_loss`, or shape [1].
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            A float32 scalar (float64 for float64 inputs), or the dict.

        Raises:
            ValueError: world_size is not the process group's.
        """
        loss = siglip_loss(
            image_features,
            text_features,
            _scalar(logit_scale),
            logit_bias=_scalar(logit_bias),
            group=_ranked(self.world_size),
            ring=self.dist_impl in ("bidir", "shift"),
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _among_constants(
    image_features: Tensor,  # [N, D]
    text_features: Tensor,  # [N, D]
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None,
) -> Tensor:
    """CLIP's loss of this rank's features among those of all ranks, which receive no gradient."""
    ranks = agree(
        True,
        False,
        check_image_text,
        image_features=image_features,
        text_features=text_features,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    assert isinstance(ranks, Ranks)
    first = sum(ranks.samples[: dist.get_rank()])  # of this rank's pairs
    loss: Any = 0.0
    for x, y in ((image_features, text_features), (text_features, image_features)):
        lse, pair = similarity_lse(
            x, ranks.gather(y), logit_scale, pair_offset=first, exclude_pair=True
        )
        loss = loss + ranks.mean(F.softplus(lse - pair)) / 2
    if logit_bias is not None:
        loss = loss + 0 * logit_bias
    return loss.to(loss_dtype(image_features))


def _ranked(world_size: int) -> bool:
    """Whether there are several ranks."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if world_size not in (1, ranks):
        raise ValueError(f"world_size must be that of the process group, {ranks}, not {world_size}")
    return world_size > 1


def _scalar(value: Any) -> Any:
    """A tensor of shape [1], as models for FSDP hold their scale, as one of no dimension."""
    return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
