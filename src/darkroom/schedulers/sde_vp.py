"""Steps of the variance-preserving SDE."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from .base import Device
from .continuous import ContinuousScheduler

__all__ = ["ScoreSdeVpScheduler"]


class ScoreSdeVpScheduler(ContinuousScheduler):
    """Euler-Maruyama steps of the reverse SDE (Song et al. 2021, eq. 6 and 11), for networks that predict eps of a process whose beta grows from
    `beta_min` to `beta_max` over times 0 to 1; 1000 steps or more. `timesteps` run from 1 to `sampling_eps`.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 2000
        beta_min: float = 0.1
        beta_max: float = 20
        sampling_eps: float = 1e-3

    paper = "Song et al. 2021"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)
        self.num_inference_steps = None

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        self._install(torch.linspace(1, self.config.sampling_eps, steps).numpy(), device)

    def step_pred(self, score: Tensor, x: Tensor, t: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """x at the next time, and its mean, for the network's output `score`, which is eps, and times t () or (B,)."""
        self._needs_run()
        low, high = self.config.beta_min, self.config.beta_max
        t = torch.as_tensor(t)
        beta = low + t * (high - low)
        std = (1 - torch.exp(2 * (-0.25 * t**2 * (high - low) - 0.5 * t * low))).sqrt()
        beta, std = (values.reshape(-1, *[1] * (x.ndim - 1)) for values in (beta, std))
        dt, diffusion = -1 / len(self._numbers), beta.sqrt()
        drift = -0.5 * beta * x - diffusion**2 * (-score / std)
        mean = x + drift * dt
        noise = randn(x.shape, generator, x.device, x.dtype)
        return mean + diffusion * math.sqrt(-dt) * noise, mean
