"""Stochastic sampling of flows at a lower temperature, for proteins."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import Device, Scheduler, Stepped, Timestep
from .tokens import Untabled

__all__ = ["RFD4ProteinaScheduler"]

START = 1e-3  # where full runs begin, since the score has no value at time 0


@dataclass(frozen=True, eq=False, repr=False)
class RFD4ProteinaConfig(Untabled):
    """`schedule_mode` spaces the times and `noise_mode` shapes the noise over them. `tsr_k` is how far the temperature falls, and `tsr_sigma` how
    early. The last `tail_steps` steps are `tail_step_multiplier` times finer. No noise is drawn below `t_lim_ode_below` and above `t_lim_ode`.
    """

    schedule_mode: Literal["log", "power"]
    noise_mode: Literal["1/t", "tan"]
    tsr_k: float
    tsr_sigma: float
    tail_steps: int = 10
    tail_step_multiplier: int = 2
    t_lim_ode: float = 0.95
    t_lim_ode_below: float = 0.02


class RFD4ProteinaScheduler(Scheduler):
    """The sampler of RFD4-Proteina (2026; after La-Proteina: Geffner et al. 2025) for one kind of its states, (B, N, D): an SDE with the marginals
    of the flow x = t x0 + (1 - t) eps, whose score is scaled as if the data were sharper (temporal score rescaling: Xu et al. 2025).
    Timesteps are times that rise from noise (0) to data (1).
    """

    Config = RFD4ProteinaConfig
    kind = "flow"
    paper = "Geffner et al. 2025"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        for name, least in {"tsr_k": 0, "tail_steps": -1, "tail_step_multiplier": 1 if config.tail_steps else -1}.items():
            if not config[name] > least:
                self._refuse(name, config[name], f"above {least}")
        self._install(np.empty(0, np.float32), None)

    def _times(self, steps: int) -> Tensor:
        """Times of a whole run, (steps + 1,): of a finer one, every `tail_step_multiplier`-th, and all in the tail."""
        config, fine, tail = self.config, self.config.tail_step_multiplier, self.config.tail_steps
        if not tail:
            return self._evenly(steps)
        coarse = steps - (fine - 1) * tail
        if coarse < tail:
            expected = f"at least {tail * fine}: the tail alone has as many"
            raise self._error("Too few steps for the tail.", "set_timesteps, num_inference_steps", steps, expected)
        times, begin = self._evenly(coarse * config.tail_step_multiplier), (coarse - tail) * fine
        return torch.cat([times[:begin:fine], times[begin:]])

    def _evenly(self, steps: int) -> Tensor:
        """Times in equal steps of their square root, or of the logarithm of what is left."""
        if self.config.schedule_mode == "power":
            return torch.linspace(START**0.5, 1, steps + 1) ** 2
        times = 1 - torch.logspace(-2, START, steps + 1).flip(0)
        times = times - (times.min() - START)
        return times / times.max()

    def _sharpening(self, t: Tensor) -> Tensor:
        """The factor of the score at times t."""
        snr, sigma = t**2 / (1 - t) ** 2, self.config.tsr_sigma
        return (snr * sigma**2 + 1) / (snr * sigma**2 / self.config.tsr_k + 1)

    def set_timesteps(self, num_inference_steps: int, device: Device = None, start_time: float | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps, over all times or from about `start_time`, in [0, 1), with the spacing of a whole run."""
        steps = whole = self._steps(num_inference_steps)
        if start_time is not None:
            if not 0 <= start_time < 1:
                raise self._error("No time to start at.", "set_timesteps, start_time", start_time, "from 0 to below 1")
            dense = max(steps * 100, 1000)
            left = int((self._times(dense) >= float(start_time) - 1e-6).sum())
            whole = round(steps * dense / max(left - 1, 1))
        times = self._times(whole)
        before = times[:-1].clamp(0, 1 - 1e-5)
        if self.config.noise_mode == "tan":
            angle = (1 - before) * torch.pi / 2
            noise = ((torch.pi / 2) * torch.sin(angle) / (torch.cos(angle) + 1e-2)).clamp(min=0)
        else:
            noise = 1 / (before + 1e-2)
        noise = noise / self._sharpening(times[:-1]) ** 2  # in the drift and in the noise
        self.num_inference_steps = steps
        self._marks, self._noise = times[-(steps + 1) :], noise[-steps:]
        self._install(self._marks[:-1].numpy(), device)
        self.step_index = 0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Timestep) -> Tensor:
        """t x0 + (1 - t) eps for x0 and noise (B, N, D) at times () or (B,), in [0, 1)."""
        t = torch.as_tensor(timesteps).to(original_samples)
        if t.ndim > 1 or (t.ndim and len(t) != len(original_samples)) or (t.device.type == "cpu" and not ((t >= 0) & (t < 1)).all()):
            raise self._error(
                "No times of these samples.", "add_noise, timesteps", t.tolist(), f"in [0, 1), one or {len(original_samples)}"
            )
        t = t.reshape(-1, 1, 1)
        return (1 - t) * noise + t * original_samples

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, emit_mask: Tensor, generator: Generators = None,
        return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next time, from the velocity x0 - eps; 0 where `emit_mask` (B, N) is False. `timestep` is the next item of `timesteps`."""
        self._needs_run()
        index = self._position(timestep)
        if np.float32(self.number(timestep)) != np.float32(self._numbers[index]):
            raise self._error("Steps follow one another.", "step, timestep", self.number(timestep), self._numbers[index])
        t, dt, g, limits = self._marks[index], self._marks[index + 1] - self._marks[index], self._noise[index], self.config
        shown = emit_mask[..., None]
        if t == 0:
            return self._result(return_dict, sample * shown)
        wide = torch.promote_types(sample.dtype, torch.float32)
        x, v = sample.to(wide), model_output.to(wide)
        score = (t * v - x) / (1 - t) * self._sharpening(t)
        v = (x + (1 - t) * score) / t
        change = v * dt
        if not (t > limits.t_lim_ode or t < limits.t_lim_ode_below):
            noise = randn(sample.shape, generator, sample.device, sample.dtype)
            change = (v + g * score) * dt + torch.sqrt(2 * g * dt) * noise
        return self._result(return_dict, (x + change) * shown)
