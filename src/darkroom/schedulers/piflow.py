"""Few-step sampling with a policy that needs no network between its evaluations."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config
from . import process
from .base import Device, Scheduler, Stepped, Timestep

__all__ = ["PiflowScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class PiflowConfig(Config):
    """`n_grid` predictions for each channel, over the time of a step, steer `num_policy_substeps` steps per unit of time. The last step of a run
    is `final_step_size_scale` of the others' size. `shift` > 1 moves steps towards noise, and `eps` is where time ends.
    """

    num_train_timesteps: int = 1000
    shift: float = 5.0
    n_grid: int = 10
    eps: float = 1e-6
    final_step_size_scale: float = 0.5
    num_policy_substeps: int = 128


class PiflowScheduler(Scheduler):
    """pi-Flow (Chen et al. 2025), for distilled flows: the network predicts velocities at `n_grid` times at once, (B, ..., n_grid x C) with the
    channels last. x0 between them is linear in time, and Euler's method follows it in many small steps. All of these are linear in what the
    network predicted, so a whole step is x - sigma (weights . predictions), with weights that the schedule alone decides.
    """

    Config = PiflowConfig
    kind = "flow"
    accuracy = "-"
    paper = "Chen et al. 2025"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        for name, least in {"shift": 0, "n_grid": 1, "eps": 0, "final_step_size_scale": 0, "num_policy_substeps": 0}.items():
            if not config[name] > least:
                self._refuse(name, config[name], f"above {least}")
        if config.final_step_size_scale > 1:
            self._refuse("final_step_size_scale", config.final_step_size_scale, "at most 1")
        self.sigmas = self._weights = torch.empty(0)
        self._install(np.empty(0, np.float32), None)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None, mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps. The others are refused: distilled networks know one schedule."""
        for name, value in {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}.items():
            if value is not None:
                raise self._error(
                    "A distilled network knows one schedule.", f"set_timesteps, {name}", value, fix="Pass num_inference_steps."
                )
        config, steps = self.config, self._steps(num_inference_steps)
        times = 1 - np.arange(steps, dtype=np.float32) * (1 / (steps - (1 - config.final_step_size_scale)))
        levels = process.shifted(times, config.shift)
        self.num_inference_steps = steps
        self.sigmas = torch.from_numpy(np.append(levels, np.float32(0)))
        ends = [*times[1:], np.float32(config.eps)]
        weights = [self._policy(*step) for step in zip(levels, times, ends)]
        self._weights = torch.tensor(np.stack(weights), dtype=torch.float32, device=device)  # (steps, n_grid)
        self._install(levels * config.num_train_timesteps, device)

    def _policy(self, sigma: Any, time: Any, end: Any) -> np.ndarray:
        """The weights (n_grid,) of the velocities in a step. In float32 where time is counted: the rounding of the last small sigma matters."""
        config = self.config
        least, last = np.float32(config.eps), config.n_grid - 1
        start = process.shifted(sigma, 1 / config.shift)
        target = max(start - (time - end), np.float32(0))
        size, count = max(start - target, least), max(int(np.rint((time - end) * np.float32(config.num_policy_substeps))), 1)
        substep, first = (time - end) / np.float32(count), sigma
        weights = np.zeros(config.n_grid)  # of the x0s; what is left of 1 is x's
        for _ in range(count):
            place = np.clip((process.shifted(sigma, 1 / config.shift) - target) / size, np.float32(0), np.float32(1)) * np.float32(last)
            left = min(int(place), last - 1)
            time = max(time - substep, np.float32(0))
            sigma_next = process.shifted(time, config.shift)
            kept = 1 + (float(sigma_next) - float(sigma)) / max(float(sigma), config.eps)
            weights *= kept
            weights[left : left + 2] += (1 - kept) * np.array([left + 1 - place, place - left], dtype=np.float64)
            sigma = sigma_next
        return weights * float(first)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, for a sample (B, ..., C) and `model_output` (B, ..., n_grid x C), in float32 inside."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, "an item of timesteps, floats")
        grid = self.config.n_grid
        if model_output.shape != (expected := (*sample.shape[:-1], grid * sample.shape[-1])):
            raise self._error("Not one prediction for each grid point.", "step, model_output", tuple(model_output.shape), expected)
        weights = self._weights[self._position(timestep)].to(sample.device)
        velocity = torch.einsum("...gc,g->...c", model_output.float().unflatten(-1, (grid, sample.shape[-1])), weights)
        return self._result(return_dict, (sample.float() - velocity).to(sample.dtype))
