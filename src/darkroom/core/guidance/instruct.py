"""Guidance by a text and by a picture, each with a scale of its own."""

from __future__ import annotations
from typing import Any
import torch
from torch import Tensor
from ..types import Branch, Conditioning, Step

__all__ = ["InstructCFG"]


class InstructCFG:
    """none + image_scale (picture - none) + scale (both - picture) (Brooks et al. 2023, eq. 3), for denoisers that see a picture, too.
    `scale` is the weight of the text, `image_scale` that of the picture; guidance is off unless `scale` is above 1 and `image_scale` at least 1.
    The conditioning's negative branch has the negative prompt and the picture; the third prediction goes without both: the tensor `picture`
    among the conditions is zero there.
    """

    rescale = 0.0

    def __init__(self, scale: float = 7.5, image_scale: float = 1.5, picture: str = "image_latents"):
        self.scale, self.image_scale, self.picture = scale, image_scale, picture

    @property
    def needs_negative(self) -> bool:
        return self.scale > 1 and self.image_scale >= 1

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        return cond

    def without(self, branch: Branch) -> Branch:
        """The branch as it is without the picture."""
        return branch.with_cond(**{self.picture: torch.zeros_like(branch.cond[self.picture])})

    def __call__(self, step: Step) -> Tensor:
        cond = step.run.cond
        if cond.negative is None:
            return step.predict([cond.positive])[0]
        both, picture, none = step.predict([cond.positive, cond.negative, self.without(cond.negative)])
        return none + self.scale * (both - picture) + self.image_scale * (picture - none)
