"""The midpoint method in sigma."""

from __future__ import annotations
from collections.abc import Callable
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Tensor
from .base import FLOWS, LINSPACE, SIGMAS, Device, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler
from .process import sigma_to_t

__all__ = ["KDPM2DiscreteScheduler", "MidpointScheduler"]


def doubled(values: Tensor) -> Tensor:
    """The first value once and the others twice, as the halves of the steps use them; the last is behind the run's end."""
    return torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])


class MidpointScheduler(ExplodingScheduler):
    """Steps in two halves: to the geometric mean of two sigmas, where the slope for the whole step is taken. `timesteps` has the middles between
    the others. `sigmas` has each sigma twice, for both halves, and `sigmas_interpol` the middles.
    """

    order = 2
    _behind: ClassVar[int] = 0  # from a position to its middle
    _middles: Callable[[Tensor], Tensor]  # sigmas -> where the halves of each step but the last meet, (steps - 1,); keeps what steps need
    accuracy = "2"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self.sample: Tensor | None = None

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call begins a step, rather than ends one."""
        return self.sample is None

    def set_timesteps(self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        timesteps, levels = self._space(steps, None, num_train_timesteps)
        if self.sigma_schedule == "karras" and not self.flow:
            timesteps = timesteps.round()
        sigmas = torch.from_numpy(np.append(levels, 0).astype(np.float32))
        between = self._middles(sigmas).numpy()
        chosen = np.empty(2 * steps - 1, dtype=timesteps.dtype)
        chosen[::2] = timesteps
        chosen[1::2] = between * self.config.num_train_timesteps if self.flow else sigma_to_t(between, self.sigma_table, np.float32)
        self.sigmas = doubled(sigmas)
        self._install(chosen, device)

    def _input(self, position: int) -> tuple[Tensor, Tensor]:
        return super()._input(position) if self.sample is None else self._scales("sigmas_interpol")[position - self._behind]


class KDPM2DiscreteScheduler(MidpointScheduler):
    """DPM-Solver-2 in the form of k-diffusion (sample_dpm_2; Karras et al. 2022, algorithm 2 with the midpoint for Heun's rule and no churn): two
    evaluations per step and second order.
    """

    Config = options(beta_start=0.00085, beta_end=0.012, **SIGMAS, prediction_type=FLOWS, timestep_spacing=LINSPACE, steps_offset=0)
    paper = "Karras et al. 2022; k-diffusion"

    def _middles(self, sigmas: Tensor) -> Tensor:
        middles = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
        self.sigmas_interpol = doubled(middles)
        return middles[1:-1]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x in the middle of a step, or at its end."""
        index = self._position(timestep)
        sigma = self._input(index)[0]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.sample is None:
            self.sample, start, end = sample, sample, self._scales("sigmas_interpol")[index + 1][0]
        else:
            start, self.sample, sigma, end = self.sample, None, self.marks[index - 1], self.marks[index]
        return self._result(return_dict, start + slope * (end - sigma), x0)
