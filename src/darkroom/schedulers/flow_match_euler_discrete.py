"""Euler's and Heun's method along a straight path, and sampling from its consistency models."""

import math
from collections.abc import Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from ..core.random import Generators
from .base import Device, Stepped, Timestep, options
from .flow import FlowScheduler, ShiftedFlowScheduler
from .k_diffusion import TwoStages
from .process import shifted

__all__ = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"]


class FlowMatchEulerDiscreteScheduler(ShiftedFlowScheduler, draws="optional"):
    """Euler's method on dx/dsigma = v, the velocity that the network predicts (Lipman et al. 2023; Esser et al. 2024): the scheduler that Stable
    Diffusion 3, Flux and most later models come with; 20 to 50 steps, or 1 to 8 with distilled ones. `stochastic_sampling` predicts x0 at each step
    and adds fresh noise instead, as models distilled for that need."""

    Config = options(ShiftedFlowScheduler.Config, stochastic_sampling=False)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
             s_noise: float = 1.0, generator: Generators = None, per_token_timesteps: Tensor | None = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `per_token_timesteps` (B, N) gives each token of a sample (B, N, C) its own noise level: it goes to
        the next lower one of the schedule, and stays float32. The options s_* have no effect; calls that pass them are common."""
        x, ends = sample.float(), self._ends(timestep)
        sigma, sigma_next = ends if per_token_timesteps is None else self._token_ends(per_token_timesteps)
        if self.config.stochastic_sampling:
            prev = self._renoised(self.x0(model_output, x, sigma), sigma_next, generator)
        elif per_token_timesteps is None:
            prev = x + (sigma_next - sigma) * model_output
        else:  # away from the data: so in the reference, whose callers hand over the negative velocity
            prev = x + (sigma - sigma_next) * model_output
        return self._result(return_dict, prev.to(model_output.dtype) if per_token_timesteps is None else prev)

    def _token_ends(self, timesteps: Tensor) -> tuple[Any, Any]:
        """The sigmas that each token of timesteps (B, N) goes from and to: (B, N, 1)."""
        sigma, device = timesteps / self.config.num_train_timesteps, timesteps.device
        levels = self._once(device, lambda: self.sigmas.to(device)[:, None, None])
        return sigma[..., None], torch.where(levels < sigma - 1e-6, levels, 0.0).amax(0)[..., None]


class FlowMatchLCMScheduler(ShiftedFlowScheduler, draws="yes"):
    """Predict x0, then add fresh noise of the next level (Song et al. 2023, algorithm 1): for flow-matching models distilled to 1 to 8 steps. With
    `scale_factors`, one less than steps, x0 is resized after each step to that multiple of its first size, by `upscale_mode`: coarse steps run on
    small samples, as models distilled scale by scale do (Starodubcev et al. 2025)."""

    Config = options(ShiftedFlowScheduler.Config, scale_factors=(tuple[float, ...] | None, None),
                     upscale_mode=("bicubic", "nearest", "linear", "bilinear", "trilinear", "area", "nearest-exact"))  # fmt: skip
    _size: tuple[int, ...] = ()  # of the first sample of the run
    _history = ("_size",)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.scale_factors, self.upscale_mode = config.scale_factors, config.upscale_mode

    def set_scale_factors(self, scale_factors: Sequence[float], upscale_mode: str) -> None:
        """Use these for the runs to come."""
        self.scale_factors, self.upscale_mode = tuple(scale_factors), upscale_mode

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside, and of the next size."""
        factors, steps = self.scale_factors if self.upscale_mode else (), len(self._numbers)
        if factors and steps != len(factors) + 1:
            raise self._error("The sizes do not fit the steps.", "step, scale_factors", len(factors), f"{steps - 1}, for {steps} steps")
        (sigma, sigma_next), index = self._ends(timestep), self._position(timestep)
        self._size = self._size or tuple(model_output.shape[2:])
        x0 = self.x0(model_output, sample.float(), sigma)
        if factors and index < len(factors):
            x0 = interpolate(x0, size=[round(factors[index] * side) for side in self._size], mode=self.upscale_mode)
        return self._result(return_dict, self._renoised(x0, sigma_next, generator).to(model_output.dtype))


class FlowMatchHeunDiscreteScheduler(TwoStages, FlowScheduler, paper="Karras et al. 2022", draws="optional"):
    """Euler steps along the velocity of a flow-matching model, each corrected by the slope at its end (Karras et al. 2022, algorithm 2): two
    evaluations per step and second order. `timesteps` holds every timestep but the first twice: for the correction, and for the next step."""

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        sigmas = shifted(self._evenly(steps), self.shift).astype(np.float32)[np.repeat(np.arange(steps), 2)[1:]]
        self._lay_out(sigmas * np.float32(self.config.num_train_timesteps), sigmas, device)

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma eps at the position of the run, which begins at `timestep` if it has not begun."""
        sigma = self.marks[self._position(timestep)]
        return sigma * self._noise(noise) + (1 - sigma) * sample

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
             s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x after an Euler step, or after its correction, in float32 inside. `s_churn` is noise of standard deviation `s_noise`, added over the whole
        run between the sigmas `s_tmin` and `s_tmax`, for noise-to-signal ratios: it does not keep a straight path's variance."""
        sigma, sigma_next = self._ends(timestep)
        if self.sample is not None:
            sigma, sigma_next = self.marks[self._position(timestep) - 1], sigma
        # the correction, too, draws its noise, which then cancels; slopes are rounded as the reference's, by way of x0
        x, raised = self._churned(sample.float(), model_output, sigma, s_churn, s_tmin, s_tmax, s_noise, generator)
        if self.sample is None:
            slope = (x - (x - model_output * sigma)) / raised
            self.sample, self.slope, self.span = x, slope, sigma_next - raised
        else:
            slope = (self.slope + (x - (x - model_output * sigma_next)) / sigma_next) / 2
            x, self.sample = self.sample, None
        return self._result(return_dict, (x + slope * self.span).to(model_output.dtype))
