"""Heun's method along a straight path."""

import math
from typing import Any
import numpy as np
from torch import Tensor
from ..core.random import Generators
from .base import Device, Stepped, Timestep
from .flow import FlowScheduler
from .process import shifted

__all__ = ["FlowMatchHeunDiscreteScheduler"]


class FlowMatchHeunDiscreteScheduler(FlowScheduler):
    """Euler steps along the velocity of a flow-matching model, each corrected by the slope at its end (Karras et al. 2022, algorithm 2): two
    evaluations per step and second order. `timesteps` holds every timestep but the first twice: for the correction, and for the next step.
    """

    order = 2
    accuracy = "2"
    paper = "Karras et al. 2022"

    def _restart(self) -> None:
        super()._restart()
        self.half_done: tuple[Tensor, Tensor, Any] | None = None  # where the step began, the slope there, and how far it goes

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call begins a step, rather than corrects one."""
        return self.half_done is None

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        sigmas = shifted(self._evenly(steps), self.shift).astype(np.float32)[np.repeat(np.arange(steps), 2)[1:]]
        self._lay_out(sigmas * np.float32(self.config.num_train_timesteps), sigmas, device)

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma eps at the position of the run, which begins at `timestep` if it has not begun."""
        sigma = self.marks[self._position(timestep)]
        return sigma * self._noise(noise) + (1 - sigma) * sample

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
        s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x after an Euler step, or after its correction, in float32 inside. `s_churn` is noise of standard deviation `s_noise`, added over the
        whole run between the sigmas `s_tmin` and `s_tmax`, for noise-to-signal ratios: it does not keep a straight path's variance.
        """
        sigma, sigma_next = self._ends(timestep)
        if self.half_done is not None:
            sigma, sigma_next = self.marks[self._position(timestep) - 1], sigma
        # the correction, too, draws its noise, which then cancels; slopes are rounded as the reference's, by way of x0
        x, raised = self._churned(sample.float(), model_output, sigma, s_churn, s_tmin, s_tmax, s_noise, generator)
        if self.half_done is None:
            slope, dt = (x - (x - model_output * sigma)) / raised, sigma_next - raised
            self.half_done = x, slope, dt
        else:
            slope = (x - (x - model_output * sigma_next)) / sigma_next
            (x, first, dt), self.half_done = self.half_done, None
            slope = (first + slope) / 2
        return self._result(return_dict, (x + slope * dt).to(model_output.dtype))
