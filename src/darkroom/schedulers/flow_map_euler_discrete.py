"""Jumps between any two times of a flow map."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from .base import Device, Stepped, Timestep
from .flow import FlowScheduler
from .process import shifted

__all__ = ["FlowMapEulerDiscreteScheduler"]

CLOSE = 1e-3  # how near a timestep of the schedule is taken for it


class FlowMapEulerDiscreteScheduler(FlowScheduler):
    """For networks that predict the mean velocity from time t to an earlier r (Boffi et al. 2025; MeanFlow, Geng et al. 2025): one step goes
    the whole way, x_r = x_t - (t - r) out, and more steps improve it. `timesteps` and `sigmas` are float64, as the step is inside.
    """

    paper = "Boffi et al. 2025"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)

    def apply_shift(self, sigmas: Tensor) -> Tensor:
        """The sigmas, moved by the configured shift."""
        return sigmas if self.shift == 1 else shifted(sigmas, self.shift)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, through `sigmas` or at `timesteps`; all are shifted as configured."""
        steps, table = self._steps(num_inference_steps, sigmas=sigmas, timesteps=timesteps), self.config.num_train_timesteps
        if sigmas is not None or timesteps is not None:
            levels = torch.as_tensor(sigmas if sigmas is not None else timesteps, dtype=torch.float64).cpu()
            levels = levels if sigmas is not None else levels / table
        else:
            levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
        levels = self.apply_shift(levels)
        self.sigmas = torch.cat([levels, levels.new_zeros(1)])
        chosen = levels * table
        self._install((chosen.float() if _narrow(device) else chosen).numpy(), device)
        self.num_inference_steps = steps

    def index_for_timestep(self, timestep: Timestep) -> int | None:  # type: ignore[override]
        """The position of the nearest timestep, of a batch that of its first; None where none is near."""
        value = self.number(timestep if not isinstance(timestep, Tensor) or timestep.numel() == 1 else timestep.flatten()[0])
        if value in self._places:
            return self._places[value]
        distances = np.abs(np.asarray(self._numbers, dtype=np.float32) - np.float32(value))
        place = int(distances.argmin())
        return place if distances[place] <= CLOSE else None

    def _sigma(self, timestep: Timestep, place: int | None, like: Tensor) -> Any:
        """The sigma of a timestep () or (B,): that of its place in the schedule, or its own."""
        if place is not None:
            return self.levels[place]
        own = torch.as_tensor(timestep)
        sigma = (own.to(self.sigmas.dtype) if isinstance(timestep, Tensor) else own) / self.config.num_train_timesteps
        return sigma.to(like).reshape(-1, *[1] * (like.ndim - 1))

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma eps for data and noise (B, ...) at any timesteps (B,) or (1,), in their dtype."""
        sigma = torch.as_tensor(timestep).to(sample) / self.config.num_train_timesteps
        sigma = sigma.reshape(*sigma.shape, *[1] * (sample.ndim - sigma.ndim))
        return sigma * self._noise(noise) + (1 - sigma) * sample

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, r_timestep: Timestep | None = None, return_dict: bool = True
    ) -> Stepped:
        """x at `r_timestep`, or at the next timestep; both may be any, and one for each row, outside the schedule."""
        place = self.index_for_timestep(timestep)
        if self.step_index is None:
            self.step_index = (place or 0) if self.begin_index is None else self.begin_index
        if r_timestep is None and place is None:
            raise self._error("Where this step ends is not known.", "step, r_timestep", None, "a timestep, for one outside the schedule")
        x = sample.to(torch.float32 if _narrow(sample.device) else torch.float64)
        t = self._sigma(timestep, place, x)
        r = self.levels[place + 1] if r_timestep is None else self._sigma(r_timestep, self.index_for_timestep(r_timestep), x)  # type: ignore[operator]
        return self._result(return_dict, (x - (t - r) * model_output.to(x)).to(model_output.dtype))


def _narrow(device: Device) -> bool:
    """Whether a device has no float64."""
    return torch.device(device or "cpu").type in ("mps", "npu")
