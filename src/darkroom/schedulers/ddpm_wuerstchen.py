"""Ancestral sampling in continuous time, for Wuerstchen and Stable Cascade."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import Device, Scheduler, Stepped, Timestep
from .tokens import Untabled

__all__ = ["DDPMWuerstchenScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class DDPMWuerstchenConfig(Untabled):
    """`scaler` above 1 warps time towards noise, below 1 towards the data; `s` is the offset of the cosine schedule."""

    scaler: float = 1.0
    s: float = 0.008


class DDPMWuerstchenScheduler(Scheduler):
    """DDPM (Ho et al. 2020, eq. 11) over the cosine schedule (Nichol & Dhariwal 2021, eq. 17) without a table: timesteps are times from 1 to 0,
    the end included, and the network predicts eps (Pernias et al. 2023).
    """

    Config = DDPMWuerstchenConfig
    paper = "Ho et al. 2020"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if not config.scaler > 0:
            self._refuse("scaler", config.scaler, "above 0")
        if not config.s > -0.5:
            self._refuse("s", config.s, "above -0.5")
        s = torch.tensor([config.s])
        self._at_0 = (torch.cos(s / (1 + s) * torch.pi * 0.5) ** 2).item()
        self._install(np.empty(0, np.float32), None)

    def _bar(self, t: Tensor, like: Tensor) -> Tensor:
        """Alpha bar at times (B,): (B, 1, ...), in [0.0001, 0.9999]."""
        scaler = self.config.scaler
        if scaler != 1:
            t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        s, at_0 = (
            torch.full((1,), value, device=t.device) for value in (self.config.s, self._at_0)
        )  # tensors keep halves from rounding the rest
        bar = torch.cos((t + s) / (1 + s) * torch.pi * 0.5) ** 2 / at_0
        return bar.clamp(0.0001, 0.9999).view(-1, *[1] * (like.ndim - 1))

    def set_timesteps(
        self, num_inference_steps: int | None = None, timesteps: Sequence[float] | Tensor | None = None, device: Device = None
    ) -> None:
        """Lay out a run of `num_inference_steps` steps over `num_inference_steps` + 1 times, or over the given ones, of which the last is no step."""
        if timesteps is None:
            timesteps = torch.linspace(1.0, 0.0, self._steps(num_inference_steps) + 1)
        times = np.array(timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps, np.float32)
        if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all():
            raise self._error("No times to step between.", "set_timesteps, timesteps", times.tolist(), "two numbers at least")
        self.num_inference_steps = len(times) - 1
        self._install(times, device)

    def _absent(self, timestep: float) -> int:
        """The nearest, since halves round times."""
        return min(range(len(self._numbers)), key=lambda place: abs(self._numbers[place] - timestep))

    def previous_timestep(self, timestep: Tensor) -> Tensor:
        """The time after that of a batch, (B,)."""
        self._needs_run()
        place = self.index_for_timestep(timestep[0])
        if place + 1 == len(self._numbers):
            raise self._error("The run is over.", "step, timestep", self._numbers[place], fix="Step at all timesteps but the last.")
        return self._timesteps[place + 1].expand(len(timestep))

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """Draw x at the next time, from the predicted eps. `timestep` is the time of the whole batch, () or (B,)."""
        t = torch.as_tensor(timestep, device=model_output.device).reshape(-1)
        later = self.previous_timestep(torch.as_tensor(timestep).reshape(-1))
        bar, bar_prev = self._bar(t, sample), self._bar(later.to(model_output.device), sample)
        alpha = bar / bar_prev
        mean = (1 / alpha).sqrt() * (sample - (1 - alpha) * model_output / (1 - bar).sqrt())
        noise = randn(mean.shape, generator, model_output.device, model_output.dtype)
        deviation = ((1 - alpha) * (1 - bar_prev) / (1 - bar)).sqrt() * noise
        onwards = (later.to(mean) != 0).view(-1, *[1] * (sample.ndim - 1))
        return self._result(return_dict, (mean + deviation * onwards).to(model_output.dtype))

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times (B,), on the device of `like` (B, ...): each (B, 1, ...)."""
        bar = self._bar(timesteps.to(like.device), like)
        return bar.sqrt(), (1 - bar).sqrt()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps for x0 and noise (B, ...) at times (B,)."""
        alpha, sigma = self.signal_and_noise(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)
