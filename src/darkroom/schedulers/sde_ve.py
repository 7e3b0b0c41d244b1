"""Predictor and corrector for the variance-exploding SDE."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from ..outputs import Output
from .base import Device, SchedulerOutput, Timestep
from .continuous import ContinuousScheduler

__all__ = ["ScoreSdeVeScheduler", "SdeVeOutput"]


@dataclass
class SdeVeOutput(Output):
    """The sample at the next time, and its mean, without the noise of the step."""

    prev_sample: Tensor
    prev_sample_mean: Tensor


class ScoreSdeVeScheduler(ContinuousScheduler):
    """Reverse diffusion with Langevin corrections (Song et al. 2021, algorithms 2 and 4), for networks that predict the score of x0 + sigma eps:
    `correct_steps` times `step_correct`, then `step_pred`, at each of hundreds of times. `snr` sets the size of the corrections. `timesteps` run
    from 1 to `sampling_eps`; `sigmas` and the ascending `discrete_sigmas`, of which the steps are made, go between `sigma_min` and `sigma_max`.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 2000
        snr: float = 0.15
        sigma_min: float = 0.01
        sigma_max: float = 1348.0
        sampling_eps: float = 1e-5
        correct_steps: int = 1

    paper = "Song et al. 2021"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        for name in ("sigma_min", "sigma_max", "sampling_eps"):
            if not config[name] > 0:
                self._refuse(name, config[name], "above 0")
        self.set_timesteps(config.num_train_timesteps)
        self.set_sigmas(config.num_train_timesteps)
        self.num_inference_steps = None

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        return self.config.sigma_max

    def set_timesteps(self, num_inference_steps: int, sampling_eps: float | None = None, device: Device = None) -> None:
        """Lay out the times of a run, down to `sampling_eps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        self._install(torch.linspace(1, self.config.sampling_eps if sampling_eps is None else sampling_eps, steps).numpy(), device)

    def set_sigmas(
        self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, sampling_eps: float | None = None
    ) -> None:
        """Lay out the sigmas of a run. `sampling_eps` has no effect: the times are known already."""
        low = self.config.sigma_min if sigma_min is None else sigma_min
        high = self.config.sigma_max if sigma_max is None else sigma_max
        self.discrete_sigmas = torch.linspace(math.log(low), math.log(high), self._steps(num_inference_steps)).exp()
        self.sigmas = low * (high / low) ** torch.tensor(self._numbers)
        self._on_device: dict[torch.device, Tensor] = {}

    def _discrete(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self.discrete_sigmas.to(device)
        return self._on_device[device]

    def get_adjacent_sigma(self, timesteps: Tensor, t: Tensor) -> Tensor:
        """The sigmas below those at these positions (B,), 0 below the first."""
        return torch.where(timesteps == 0, torch.zeros_like(t.to(timesteps.device)), self._discrete(timesteps.device)[timesteps - 1])

    def step_pred(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> SdeVeOutput | tuple[Tensor, ...]:
        """x at the next time, after a step of the reverse SDE (Song et al. 2021, eq. 46)."""
        t = timestep * torch.ones(len(sample), device=sample.device)
        positions = (t * (len(self._numbers) - 1)).long()
        sigma = self._discrete(sample.device)[positions]
        std = (sigma**2 - self.get_adjacent_sigma(positions, t) ** 2) ** 0.5
        std = std.reshape(-1, *[1] * (sample.ndim - 1))
        mean = sample + std**2 * model_output
        prev = mean + std * randn(sample.shape, generator, sample.device, sample.dtype)
        return SdeVeOutput(prev, mean) if return_dict else (prev, mean)

    def step_correct(
        self, model_output: Tensor, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """x at the same time, after a step of Langevin dynamics, whose size suits the norms of noise and score (algorithm 4)."""
        noise = randn(sample.shape, generator).to(sample.device)
        norm, noise_norm = (values.flatten(1).norm(dim=-1).mean() for values in (model_output, noise))
        size = (self.config.snr * noise_norm / norm) ** 2 * 2 * torch.ones((len(sample), *[1] * (sample.ndim - 1)), device=sample.device)
        prev = sample + size * model_output + (size * 2) ** 0.5 * noise
        return SchedulerOutput(prev) if return_dict else (prev,)

    def add_noise(self, original_samples: Tensor, noise: Tensor | None, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at positions (B,) of `discrete_sigmas`; fresh noise where none is given."""
        sigma = self._discrete(original_samples.device)[timesteps.to(original_samples.device)]
        noise = torch.randn_like(original_samples) if noise is None else noise
        return original_samples + noise * sigma.reshape(-1, *[1] * (original_samples.ndim - 1))
