"""Euler steps in sigma, and the same with fresh noise."""

import math
from typing import Any
import numpy as np
from torch import Tensor
from ..core.random import Generators, randn
from . import process
from .base import FLOWS, LINSPACE, SIGMAS, Device, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler

__all__ = ["EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"]


class EulerDiscreteScheduler(ExplodingScheduler, paper="Karras et al. 2022", draws="optional"):
    """Euler steps along dx/dsigma, with optional churn (Karras et al. 2022, algorithm 2 without its correction): the plain choice, robust from about
    20 steps on; the same steps as DDIM with eta = 0. `interpolation_type` "log_linear" takes sigmas evenly in their logarithm, and `timestep_type`
    "continuous" tells a network with v_prediction log(sigma) / 4, as EDM does."""

    Config = options(prediction_type=("epsilon", "sample", "original_sample", "v_prediction", "flow_prediction"),
                     interpolation_type=("linear", "log_linear"), **SIGMAS, sigma_min=None, sigma_max=None, timestep_spacing=LINSPACE,
                     timestep_type=("discrete", "continuous"), steps_offset=0, rescale_betas_zero_snr=False,
                     final_sigmas_type=("zero", "sigma_min"))  # fmt: skip

    @property
    def _log_sigma_time(self) -> bool:
        """Whether the network takes c_noise = log(sigma) / 4 for its timestep (Karras et al. 2022, table 1)."""
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def _lay_out(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device, end: float | None = None) -> None:
        if self._log_sigma_time:
            timesteps = 0.25 * np.log(sigmas.astype(np.float32))  # with "log_linear" one more than steps
        super()._lay_out(timesteps.astype(np.float32), sigmas, device, end)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, timesteps: list[int] | None = None,
                      sigmas: list[float] | None = None) -> None:  # fmt: skip
        """Lay out a run: of `num_inference_steps`, at `timesteps`, or through `sigmas` (one more than steps, the last is the end)."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            self.num_inference_steps = steps - 1
            levels, end = np.split(np.asarray(sigmas, dtype=np.float32), [-1])
            chosen = levels * self.config.num_train_timesteps if self.flow else process.sigma_to_t(levels, self.sigma_table)
            return self._lay_out(chosen, levels, device, end[0])
        self._free_timesteps(timesteps, *["timestep_type"] * self._log_sigma_time)
        return self._lay_out(*self._space(steps, timesteps), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
             s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `s_churn` is noise, of standard deviation `s_noise`, added and removed again over the whole run
        between the sigmas `s_tmin` and `s_tmax`; flows have none."""
        sigma, sigma_next = self._ends(timestep)
        x, raised = sample.float(), sigma
        if s_churn > 0 and not self.flow:
            x, raised = self._churned(x, model_output, sigma, s_churn, s_tmin, s_tmax, s_noise, generator)
        # the network saw the sample at sigma; with epsilon the churned sample is taken to be at the raised level
        x0 = self.x0(model_output, x, raised if self.config.prediction_type == "epsilon" else sigma)
        step = self._differences()[self.step_index] if raised is sigma else sigma_next - raised  # type: ignore[index]
        prev = x + (x - x0) / raised * step
        return self._result(return_dict, prev.to(model_output.dtype), x0)


class EulerAncestralDiscreteScheduler(ExplodingScheduler, paper="Karras et al. 2022; k-diffusion", draws="yes"):
    """Step below the next sigma, then add noise up to it: ancestral sampling by Euler steps (k-diffusion, sample_euler_ancestral). Noise corrects
    earlier errors, so pictures vary more and keep changing with the number of steps."""

    Config = options(prediction_type=FLOWS, timestep_spacing=LINSPACE, steps_offset=0, rescale_betas_zero_snr=False)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.timesteps = self.timesteps.double()  # of the whole table only, as the reference

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
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
        down, up = process.ancestral(self.sigmas[:-1], self.sigmas[1:])
        return list(zip((down - self.sigmas[:-1]).unbind(), up.unbind()))
