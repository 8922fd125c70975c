"""NPID: every image a class of its own, remembered in a bank."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from fastssl.functional import info_nce
from fastssl.methods.base import Method
from fastssl.nn import MemoryBank


class NPID(Method):
    """Unsupervised Feature Learning via Non-Parametric Instance Discrimination.

    ``v = g(f(x))``; InfoNCE of v, its own row of a bank, and rows of other images drawn evenly;
    then the own row moves towards v. The paper estimates its softmax by NCE; here the drawn rows
    stand for the whole, as in later work. Its proximal term is left out.

    Args:
        encoder: f, any module from [B, C, H, W] to [B, F].
        head: g, any module from [B, F] to [B, D]; "linear" in the paper.
        num_samples: how many images there are.
        dim: D.
        negatives: rows drawn each step.
        bank_momentum: m of ``row ← normalise(m·row + (1 − m)·v)``.
        temperature: of InfoNCE, positive.

    Wu et al. 2018, https://arxiv.org/abs/1805.01978
    """

    views: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("indices",)

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        num_samples: int,
        *,
        dim: int = 128,
        negatives: int = 4096,
        bank_momentum: float = 0.5,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.bank = MemoryBank(num_samples, dim, bank_momentum)
        self.negatives = negatives
        self.temperature = temperature

    def embed(self, x: Tensor) -> tuple[Tensor]:
        """v, [N, D]."""
        return (self.head(self.encoder(x)),)

    def loss(self, v: Tensor, *, indices: Tensor) -> Tensor:
        """InfoNCE of v, [N, D], with rows of images that are not in the batch; a float32 scalar.

        Args:
            v: the embeddings.
            indices: int64 [N], all different: which images they are of.
        """
        negatives = self.bank.sample(self.negatives, exclude=indices)
        v, own = v.to(negatives.dtype), self.bank(indices)
        return info_nce(v, own, negatives, self.temperature, group=self.group)

    def after_step(self, v: Tensor, *, indices: Tensor) -> None:
        """The images' rows move towards v."""
        self.bank.update(indices, v, group=self.group)
