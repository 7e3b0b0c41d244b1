"""Guidance by a text and by a picture, each with a scale of its own."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Branch, Conditioning, Step, Term
from .cfg import CFG

__all__ = ["InstructCFG"]


class InstructCFG(CFG):
    """none + image_scale (picture - none) + scale (both - picture) + terms, for denoisers that see a picture, too (Brooks et al. 2023, eq. 3).
    `both` is the prediction of the positive branch, `picture` that of the negative one, which has the negative prompt and the picture, and `none`
    that of a third without either: the condition of the name `picture` is zero there. `image_scale` says how closely the result keeps to the
    picture, 1 or more; below 1, or at a `scale` of 1 or below, there is no guidance. All else is as in `CFG`.
    """

    def __init__(
        self, scale: float = 7.5, image_scale: float = 1.5, rescale: float = 0.0, terms: Sequence[Term] = (), picture: str = "image_latents"
    ):
        super().__init__(scale, rescale, [_Without(self, picture), *terms])
        self.image_scale = image_scale

    @property
    def needs_negative(self) -> bool:
        return super().needs_negative and self.image_scale >= 1


class _Without:
    """What the guidance above adds to plain guidance: (image_scale - 1) (picture - none)."""

    def __init__(self, guidance: InstructCFG, picture: str):
        self.guidance, self.picture = guidance, picture

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        return cond

    def branches(self, cond: Conditioning) -> Sequence[Branch]:
        if cond.negative is None:
            return ()
        return [cond.negative.with_cond(**{self.picture: torch.zeros_like(cond.negative.cond[self.picture])})]

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        return (self.guidance.image_scale - 1) * (base - extra[0]) if extra else base.new_zeros(())
