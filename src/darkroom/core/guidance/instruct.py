"""Guidance by a text and by a picture, each with a scale of its own."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Branch, Step, Term
from .cfg import CFG
from .common import Addend, Scale, check

__all__ = ["InstructCFG"]


class InstructCFG(CFG):
    """none + image_scale (picture - none) + scale (both - picture) + terms, for denoisers that see a picture, too (Brooks et al. 2023, eq. 3).
    `both` is the prediction of the positive branch, `picture` that of the negative one, which has the negative prompt and the picture, and `none`
    that of a third without either: the condition of the name `picture` is zero there. `image_scale` says how closely the result keeps to the
    picture, 1 or more; below 1, or at a `scale` of 1 or below, there is no guidance. All else is as in `CFG`.
    """

    def __init__(
        self, scale: Scale = 7.5, image_scale: float = 1.5, rescale: float = 0.0, terms: Sequence[Term] = (), picture: str = "image_latents",
        **options: Any,
    ):  # fmt: skip
        self._without = _Without(picture)
        self.image_scale = image_scale
        super().__init__(scale, rescale, [self._without, *terms], **options)

    @property
    def image_scale(self) -> float:
        return self._image_scale

    @image_scale.setter
    def image_scale(self, value: float) -> None:
        check("InstructCFG.image_scale", value)
        self._image_scale, self._without.scale = value, max(value - 1, 0.0)

    @property
    def needs_negative(self) -> bool:
        return super().needs_negative and self.image_scale >= 1


class _Without(Addend):
    """What the guidance above adds to plain guidance: (image_scale - 1) (picture - none)."""

    def __init__(self, picture: str):
        super().__init__(0.0)  # set by the guidance
        self.picture = picture

    def branches(self, step: Step) -> Sequence[Branch]:
        negative = step.cond.negative
        return [] if negative is None else [negative.with_cond(**{self.picture: torch.zeros_like(negative.cond[self.picture])})]

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        return self.weight(step) * (base - extra[0]) if extra else base.new_zeros(())
