"""Heun's method in sigma: two evaluations per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .base import BetaConfig, Device, Prediction, Spacing, Stepped, Timestep
from .process import spaced
from .sigma import ExplodingScheduler

__all__ = ["HeunDiscreteScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class HeunDiscreteConfig(BetaConfig):
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: Prediction = "epsilon"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_spacing: Spacing = "linspace"
    steps_offset: int = 0


class HeunDiscreteScheduler(ExplodingScheduler):
    """Euler steps, each corrected by the slope at its end (Karras et al. 2022, algorithm 1).

    `timesteps` holds every timestep but the first twice: for the correction that ends there, and for the next step.
    """

    Config = HeunDiscreteConfig
    order = 2

    def _restart(self) -> None:
        super()._restart()
        self.half_done: tuple[Tensor, Tensor] | None = None  # where the step began, and the slope there

    @property
    def state_in_first_order(self) -> bool:
        """Whether an Euler step is due, rather than its correction."""
        return self.half_done is None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, num_train_timesteps: int | None = None,
        timesteps: list[int] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`, or at `timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps)
        at: Any = timesteps
        if timesteps is not None:
            self._free_timesteps()
        elif num_train_timesteps:
            at = spaced(self.config.timestep_spacing, steps, num_train_timesteps, self.config.steps_offset)
        chosen, sigmas = self._space(steps, at)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._lay_out(chosen[twice], sigmas[twice], device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x after an Euler step, or after its correction."""
        index = self._position(timestep)
        sigma = self.sigmas[index]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.half_done is None:
            self.half_done = sample, slope
            prev = sample + slope * (self.sigmas[index + 1] - sigma)
        else:
            start, first = self.half_done
            self.half_done = None
            prev = start + (first + slope) / 2 * (sigma - self.sigmas[index - 1])
        return self._result(return_dict, prev, x0)
