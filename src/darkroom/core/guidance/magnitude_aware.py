"""Magnitude-aware guidance."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Step, Term
from .cfg import CFG
from .common import Scale, check

__all__ = ["MagnitudeAware"]


class MagnitudeAware(CFG):
    """CFG whose scale falls towards no guidance as exp(-alpha r), r = |cond - uncond| / |uncond| (MAMBO-G, arXiv 2508.03442).
    For high scales, 10 and more, with few steps: the first directions are the largest and do the damage. `alpha` is 0 or more; 0 is CFG, 8 usual.
    All else as of `CFG`.
    """

    def __init__(
        self, scale: Scale = 10.0, rescale: float = 0.0, terms: Sequence[Term] = (), *, alpha: float = 8.0, start: float = 0.0,
        stop: float = 1.0, use_original_formulation: bool = False,
    ):  # fmt: skip
        super().__init__(scale, rescale, terms, start=start, stop=stop, use_original_formulation=use_original_formulation)
        check("MagnitudeAware.alpha", alpha)
        self.alpha = alpha

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        axes = tuple(range(1, cond.ndim))
        ratio = torch.linalg.vector_norm(cond - uncond, dim=axes, keepdim=True) / torch.linalg.vector_norm(uncond, dim=axes, keepdim=True)
        return super().combine(step, uncond, cond, self.neutral + (scale - self.neutral) * torch.exp(-self.alpha * ratio))
