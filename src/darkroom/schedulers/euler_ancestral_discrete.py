"""Euler steps with fresh noise."""

from __future__ import annotations
from typing import Any
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWS, LINSPACE, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler
from .process import ancestral

__all__ = ["EulerAncestralDiscreteScheduler"]


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """Step below the next sigma, then add noise up to it: ancestral sampling by Euler steps (k-diffusion, sample_euler_ancestral). Noise
    corrects earlier errors, so pictures vary more and keep changing with the number of steps.
    """

    Config = options(prediction_type=FLOWS, timestep_spacing=LINSPACE, steps_offset=0, rescale_betas_zero_snr=False)
    paper = "Karras et al. 2022; k-diffusion"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.timesteps = self.timesteps.double()  # of the whole table only, as the reference

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in float32 inside."""
        (sigma, sigma_next), x = self._ends(timestep), sample.float()
        x0 = self.x0(model_output, x, sigma)
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        if self.flow:  # the same in noise-to-signal ratios, of which the one before may be infinite; eps is (x - alpha x0) / sigma
            ratio = sigma_next * (1 - sigma) / (sigma * (1 - sigma_next))
            eps = ratio * (x - (1 - sigma) * x0) / sigma + (1 - ratio**2) ** 0.5 * noise
            prev = (1 - sigma_next) * x0 + sigma_next * eps
        else:
            down, up = self._once("ancestral", self._ancestral)[self.step_index]
            prev = x + (x - x0) / sigma * down + noise * up
        return self._result(return_dict, prev.to(model_output.dtype), x0)

    def _ancestral(self) -> list[tuple[Tensor, Tensor]]:
        """How far each step goes down, and the standard deviation of its noise."""
        down, up = ancestral(self.sigmas[:-1], self.sigmas[1:])
        return list(zip((down - self.sigmas[:-1]).unbind(), up.unbind()))
