"""Classifier-free guidance that grows over the frames of a video."""

from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Step, Term
from .cfg import CFG

__all__ = ["FrameCFG"]


class FrameCFG(CFG):
    """CFG of videos (B, F, C, H, W), whose scale goes from `first` at the first frame to `scale` at the last one (Blattmann et al. 2023, D.3).
    There is no unconditional branch where `scale` is 1 or below.
    """

    def __init__(self, first: float = 1.0, scale: float = 3.0, rescale: float = 0.0, terms: Sequence[Term] = ()):
        super().__init__(scale, rescale, terms)
        self.first = first

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        grown = torch.linspace(self.first, scale, cond.shape[1]).to(cond)[:, None, None, None]
        return self.along(uncond, cond, grown, cond - uncond)
