"""CFG-Zero*."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Step, Term
from .cfg import CFG
from .common import Scale, check

__all__ = ["CFGZeroStar"]


class CFGZeroStar(CFG):
    """CFG with s uncond in place of uncond, s = <cond, uncond> / |uncond|^2, and no motion in the first steps (Fan et al. 2025, sec. 4.2).
    For flow-matching networks. `zero_init_steps`, 0 or more, is how many steps predict zero: a share of 0.04 in the paper. Zero velocity keeps
    the latents as they are; for networks that predict noise it says that there is none, so take 0 for them. All else as of `CFG`.
    """

    def __init__(
        self, scale: Scale = 7.5, rescale: float = 0.0, terms: Sequence[Term] = (), *, zero_init_steps: int = 1, start: float = 0.0,
        stop: float = 1.0, use_original_formulation: bool = False,
    ):  # fmt: skip
        super().__init__(scale, rescale, terms, start=start, stop=stop, use_original_formulation=use_original_formulation)
        check("CFGZeroStar.zero_init_steps", zero_init_steps)
        self.zero_init_steps = zero_init_steps

    def __call__(self, step: Step) -> Tensor:
        if step.run.index < self.zero_init_steps:
            return torch.zeros_like(step.predict([step.run.cond.positive])[0])  # the network says of which shape it is
        return super().__call__(step)

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        axes = tuple(range(1, cond.ndim))
        dot, square = ((uncond.float() * x.float()).sum(axes, keepdim=True) for x in (cond, uncond))
        return super().combine(step, uncond * (dot / (square + 1e-8)).to(cond.dtype), cond, scale)
