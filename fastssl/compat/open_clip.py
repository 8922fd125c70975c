"""``open_clip.loss``, as of open_clip_torch 3.3."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastssl.functional import clip_loss, siglip_loss

__all__ = ["ClipLoss", "SigLipLoss"]


class ClipLoss(nn.Module):
    """CLIP's loss: ``ClipLoss()(image_features, text_features, logit_scale)``.

    See :func:`fastssl.functional.clip_loss`. No logits are written, so there are no ``get_logits``
    and ``get_ground_truth``; a class that derives from open_clip's to use them needs open_clip's.

    Args:
        local_loss, gather_with_grad, rank: mean nothing for one process.
        cache_labels: means nothing: there are no labels to cache.
        world_size: only 1 for now.
        use_horovod: only False.

    Raises:
        NotImplementedError: several processes, or Horovod.
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
        """
        loss = clip_loss(
            image_features, text_features, _scalar(logit_scale), logit_bias=_scalar(logit_bias)
        )
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """SigLIP's loss: ``SigLipLoss()(image_features, text_features, logit_scale, logit_bias)``.

    See :func:`fastssl.functional.siglip_loss`.

    Args:
        cache_labels: means nothing: there are no labels to cache.
        rank: means nothing for one process.
        world_size: only 1 for now.
        dist_impl: "bidir", "shift", "reduce", "gather" or None: how open_clip's ranks meet.
        chunk_size: means nothing: the loss is streamed anyway.

    Raises:
        NotImplementedError: several processes.
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
        """
        loss = siglip_loss(
            image_features, text_features, _scalar(logit_scale), logit_bias=_scalar(logit_bias)
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _scalar(value: Any) -> Any:
    """A tensor of shape [1], as models for FSDP hold their scale, as one of no dimension."""
    return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
