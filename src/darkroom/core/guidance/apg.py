"""Adaptive projected guidance."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Conditioning, Step, Term
from .cfg import CFG
from .common import Scale, as_x0, check, check_scale, projected, scale_at

__all__ = ["APG", "APGMix"]


class APG(CFG):
    """CFG whose direction cond - uncond is averaged over steps, bounded, and weakened where it is parallel to cond (Sadat et al. 2025, alg. 1).
    For high scales, 5 to 20, without oversaturation.
    Args:
        scale, rescale, terms, start, stop, use_original_formulation: as of `CFG`.
        momentum: direction = cond - uncond + momentum x the direction of the step before, in (-1, 1); None is without. The paper has -0.5.
        norm_threshold: the largest norm of the direction, 0 or more; 0 is without. The paper has 2.5 to 15.
        eta: the weight of the part parallel to cond, 0 or more. 1 is CFG, the paper has 0.
        dims: the axes of norm and projection, None is all but the first.
        denoised: do all this to x0, as the paper does, instead of to what the network predicts, as the reference does.
    Raises InputError for values outside these ranges; for `denoised`, ConfigError with a scheduler that does not state signal and noise.
    """

    def __init__(
        self, scale: Scale = 7.5, rescale: float = 0.0, terms: Sequence[Term] = (), *, momentum: float | None = None,
        norm_threshold: float = 15.0, eta: float = 1.0, dims: int | Sequence[int] | None = None, denoised: bool = False,
        start: float = 0.0, stop: float = 1.0, use_original_formulation: bool = False,
    ):  # fmt: skip
        super().__init__(scale, rescale, terms, start=start, stop=stop, use_original_formulation=use_original_formulation)
        name = type(self).__name__
        if momentum is not None:
            check(f"{name}.momentum", momentum, -0.999, 0.999)
        check(f"{name}.norm_threshold", norm_threshold)
        check(f"{name}.eta", eta)
        self.momentum, self.norm_threshold, self.eta = momentum, norm_threshold, eta
        self.dims, self.denoised = (dims,) if isinstance(dims, int) else dims, denoised
        self.average: Tensor | None = None

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.average = None
        return super().prepare(cond, pipe)

    def direction(self, uncond: Tensor, cond: Tensor) -> Tensor:
        """cond - uncond with the momentum of the steps before, which it joins."""
        now = cond - uncond
        if self.momentum is None:
            return now
        self.average = now if self.average is None else now + self.momentum * self.average
        return self.average

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        if not self.denoised:
            return self.bounded(uncond, cond, scale)
        (uncond, cond), as_prediction = as_x0(step, "APG", uncond, cond)
        return as_prediction(self.bounded(uncond, cond, scale))

    def bounded(self, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        direction = self.direction(uncond, cond)
        axes = tuple(range(1, cond.ndim)) if self.dims is None else tuple(self.dims)
        if self.norm_threshold > 0:
            norm = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
            direction = direction * (self.norm_threshold / norm).clamp_max(1)
        return self.along(uncond, cond, scale, projected(direction, cond, self.eta, axes))


class APGMix(APG):
    """CFG with `scale` up to step number `apg_start_step`, then APG with `apg_scale`; the momentum gathers from the first (HunyuanImage 2.1).
    `apg_scale` is 0 or more, a number or a function of the timestep, `apg_start_step` 0 or more; all others as of `APG`, which has more.
    """

    def __init__(
        self, scale: Scale = 3.5, rescale: float = 0.0, terms: Sequence[Term] = (), *, apg_scale: Scale = 10.0, apg_start_step: int = 5,
        momentum: float | None = -0.5, norm_threshold: float = 10.0, eta: float = 0.0, start: float = 0.0, stop: float = 1.0,
        use_original_formulation: bool = False,
    ):  # fmt: skip
        options = {"momentum": momentum, "norm_threshold": norm_threshold, "eta": eta}
        super().__init__(scale, rescale, terms, **options, start=start, stop=stop, use_original_formulation=use_original_formulation)  # type: ignore[arg-type]
        check_scale("APGMix.apg_scale", apg_scale)
        check("APGMix.apg_start_step", apg_start_step)
        self.apg_scale, self.apg_start_step = apg_scale, apg_start_step

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        strong = scale_at(self.apg_scale, step, "APGMix")
        if step.run.index > self.apg_start_step and strong > self.neutral:
            return super().combine(step, uncond, cond, strong)
        self.direction(uncond, cond)
        return CFG.combine(self, step, uncond, cond, scale)
