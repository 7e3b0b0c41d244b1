"""Classifier-free guidance that grows over the frames of a video."""

from collections.abc import Sequence
import torch
from torch import Tensor
from ..types import Term
from .cfg import CFG

__all__ = ["FrameCFG"]


class FrameCFG(CFG):
    """CFG of videos (B, F, C, H, W), whose scale goes from `first` at the first frame to `scale` at the last one (Blattmann et al. 2023, D.3).
    There is no unconditional branch where `scale` is 1 or below.
    """

    def __init__(self, first: float = 1.0, scale: float = 3.0, rescale: float = 0.0, terms: Sequence[Term] = ()):
        super().__init__(scale, rescale, terms)
        self.first = first

    def weight(self, pred: Tensor) -> Tensor:
        return torch.linspace(self.first, self.scale, pred.shape[1]).to(pred)[:, None, None, None]
