"""Euler's method with fresh noise in each step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.random import Generators, randn
from .base import BetaConfig, Prediction, Spacing, Stepped, Timestep
from .sigma import ExplodingScheduler

__all__ = ["EulerAncestralDiscreteScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class EulerAncestralDiscreteConfig(BetaConfig):
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """Step below the next sigma, then add noise up to it: ancestral sampling by Euler steps (k-diffusion, sample_euler_ancestral)."""

    Config = EulerAncestralDiscreteConfig

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in float32 inside."""
        sigma, sigma_next, x = *self._ends(timestep), sample.float()
        x0 = self.x0(model_output, x, sigma)
        up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        down = (sigma_next**2 - up**2) ** 0.5
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        prev = x + (x - x0) / sigma * (down - sigma) + noise * up
        return self._result(return_dict, prev.to(model_output.dtype), x0)
