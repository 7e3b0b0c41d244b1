"""Euler's method in sigma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ..core.random import Generators, randn
from .base import BetaConfig, Device, Spacing, Stepped, Timestep
from .process import sigma_to_t
from .sigma import ExplodingScheduler

__all__ = ["EulerDiscreteScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class EulerDiscreteConfig(BetaConfig):
    prediction_type: Literal["epsilon", "sample", "original_sample", "v_prediction"] = "epsilon"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    timestep_spacing: Spacing = "linspace"
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"


class EulerDiscreteScheduler(ExplodingScheduler):
    """Euler steps along dx/dsigma, with optional churn (Karras et al. 2022, algorithm 2 without its correction)."""

    Config = EulerDiscreteConfig

    @property
    def _log_sigma_time(self) -> bool:
        """Whether the network takes c_noise = log(sigma) / 4 for its timestep (Karras et al. 2022, table 1)."""
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def _lay_out(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device, end: float | None = None) -> None:
        if self._log_sigma_time:
            timesteps = 0.25 * np.log(sigmas[: len(timesteps)].astype(np.float32))
        super()._lay_out(timesteps, sigmas, device, end)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run: of `num_inference_steps`, at `timesteps`, or through `sigmas` (one more than steps, the last is the end)."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            self.num_inference_steps = steps - 1
            levels = np.asarray(sigmas, dtype=np.float32)
            chosen = sigma_to_t(levels[:-1], self.sigma_table).astype(np.float32)
            return self._lay_out(chosen, levels[:-1], device, end=levels[-1])
        if timesteps is not None:
            self._free_timesteps(*["timestep_type"] * self._log_sigma_time)
        return self._lay_out(*self._space(steps, timesteps), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside.

        `s_churn` is noise, of standard deviation `s_noise`, added and removed again over the whole run between the sigmas `s_tmin` and `s_tmax`.
        """
        sigma, sigma_next, x = *self._ends(timestep), sample.float()
        gamma = min(s_churn / (len(self.sigmas) - 1), 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        raised = sigma * (gamma + 1)
        if gamma > 0:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            x = x + noise * s_noise * (raised**2 - sigma**2) ** 0.5
        # the network saw the sample at sigma; with epsilon the churned sample is taken to be at the raised level
        x0 = self.x0(model_output, x, raised if self.config.prediction_type == "epsilon" else sigma)
        prev = x + (x - x0) / raised * (sigma_next - raised)
        return self._result(return_dict, prev.to(model_output.dtype), x0)
