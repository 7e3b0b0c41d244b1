"""The midpoint method in sigma, with fresh noise."""

from __future__ import annotations
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import LINSPACE, PREDICTIONS, SIGMAS, Stepped, Timestep, options
from .k_dpm_2_discrete import MidpointScheduler, doubled
from .process import ancestral

__all__ = ["KDPM2AncestralDiscreteScheduler"]


class KDPM2AncestralDiscreteScheduler(MidpointScheduler):
    """The midpoint method to a sigma below the next, then noise up to it (k-diffusion, sample_dpm_2_ancestral): the variety of ancestral sampling
    with steps of second order. Not for flows, whose first step would have no middle.
    """

    Config = options(beta_start=0.00085, beta_end=0.012, **SIGMAS, prediction_type=PREDICTIONS, timestep_spacing=LINSPACE, steps_offset=0)
    accuracy = "1"
    paper = "Karras et al. 2022; k-diffusion"

    _behind = 1

    def _middles(self, sigmas: Tensor) -> Tensor:
        down, up = ancestral(sigmas[:-1], sigmas[1:])
        down, up = torch.cat([down, down[-1:]]), torch.cat([up, up[-1:]])
        middles = sigmas.log().lerp(down.log(), 0.5).exp()
        middles[-2:] = 0
        self.sigmas_interpol, self.sigmas_up, self.sigmas_down = doubled(middles), doubled(up), doubled(down)
        return middles[:-2]

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x in the middle of a step, or at its end with noise."""
        index = self._position(timestep)
        sigma = self._input(index)[0]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.sample is None:
            self.sample = sample
            return self._result(return_dict, sample + slope * (self._scales("sigmas_interpol")[index][0] - sigma), x0)
        start, self.sample = self.sample, None
        down, up = self._once("ends", lambda: ((self.sigmas_down - self.sigmas).unbind(), self.sigmas_up.unbind()))
        prev = start + slope * down[index - 1]
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        return self._result(return_dict, prev + noise * up[index - 1], x0)
