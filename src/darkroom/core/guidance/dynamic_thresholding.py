"""Dynamic thresholding of guided predictions."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..types import Step, Term
from .cfg import CFG
from .common import Scale, as_x0, check, check_scale, scale_at

__all__ = ["DynamicThresholding"]


class DynamicThresholding(CFG):
    """CFG at a high scale with the range of values of a lower one: x0 of `scale` is clipped and brought to the range that x0 of `mimic_scale` has
    (Saharia et al. 2022, sec. 2.3, for latents: there the lower scale says what [-1, 1] says of pixels). For scales of 10 to 30 with whole colours.

        d = x0(scale) - m, m its mean over each channel, r = quantile(|d|), r' = max |x0(mimic_scale) - its mean|, s = max(r, r')
        x0 = m + clip(d, -s, s) r' / s

    Args:
        mimic_scale: 0 or more, a number or a function of the timestep; 7.
        percentile: of the quantile r, in (0, 1]; 0.995 clips outliers.
        per_channel: False takes mean and range over all channels at once.
        strength: in [0, 1]; below 1, the rest is x0 of `scale` as it is.
        scale, rescale, terms, start, stop, use_original_formulation: as of `CFG`.
    Raises InputError for values outside these ranges, ConfigError with a scheduler that does not state signal and noise.
    """

    def __init__(
        self, scale: Scale = 15.0, rescale: float = 0.0, terms: Sequence[Term] = (), *, mimic_scale: Scale = 7.0, percentile: float = 0.995,
        per_channel: bool = True, strength: float = 1.0, start: float = 0.0, stop: float = 1.0, use_original_formulation: bool = False,
    ):  # fmt: skip
        super().__init__(scale, rescale, terms, start=start, stop=stop, use_original_formulation=use_original_formulation)
        check_scale("DynamicThresholding.mimic_scale", mimic_scale)
        check("DynamicThresholding.percentile", percentile, low=1e-6, high=1.0)
        check("DynamicThresholding.strength", strength, high=1.0)
        self.mimic_scale, self.percentile, self.per_channel, self.strength = mimic_scale, percentile, per_channel, strength

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        mimic = scale_at(self.mimic_scale, step, "DynamicThresholding.mimic_scale")
        preds = [super(DynamicThresholding, self).combine(step, uncond, cond, value) for value in (scale, mimic)]
        found, as_prediction = as_x0(step, "DynamicThresholding", *preds)
        first = 2 if self.per_channel else 1
        flat, other = (x.flatten(first) for x in found)  # (B, C, HW) or (B, CHW)
        mean = flat.mean(-1, keepdim=True)
        off = flat - mean
        reach = (other - other.mean(-1, keepdim=True)).abs().amax(-1, keepdim=True)
        top = torch.maximum(torch.quantile(off.abs(), self.percentile, -1, keepdim=True), reach)
        held = mean + off.clamp(-top, top) * (reach / top.clamp_min(1e-12))
        return as_prediction((flat + self.strength * (held - flat)).reshape(cond.shape))
