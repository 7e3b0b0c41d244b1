"""Heun's method in sigma."""

from __future__ import annotations
from typing import Any
import numpy as np
from torch import Tensor
from .base import FLOWS, LINSPACE, SIGMAS, Device, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler

__all__ = ["HeunDiscreteScheduler"]


class HeunDiscreteScheduler(ExplodingScheduler):
    """Euler steps, each corrected by the slope at its end (Karras et al. 2022, algorithm 1): two evaluations per step and second order.
    `timesteps` holds every timestep but the first twice: for the correction that ends there, and for the next step.
    """

    Config = options(
        beta_start=0.00085, beta_end=0.012, prediction_type=FLOWS, **SIGMAS, clip_sample=False, clip_sample_range=1.0,
        timestep_spacing=LINSPACE, steps_offset=0,
    )  # fmt: skip
    order = 2
    accuracy = "2"
    paper = "Karras et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self.half_done: tuple[Tensor, Tensor] | None = None  # where the step began, and the slope there

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call begins a step, rather than corrects one."""
        return self.half_done is None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, num_train_timesteps: int | None = None,
        timesteps: list[int] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`, or at `timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps)
        self._free_timesteps(timesteps)
        chosen, sigmas = self._space(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._lay_out(chosen[twice].astype(np.float32), sigmas[twice], device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x after an Euler step, or after its correction."""
        index = self._position(timestep)
        sigma = self.marks[index]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.half_done is None:
            self.half_done = sample, slope
            prev = sample + slope * self._differences()[index]
        else:
            (start, first), self.half_done = self.half_done, None
            prev = start + (first + slope) / 2 * self._differences()[index - 1]
        return self._result(return_dict, prev, x0)
