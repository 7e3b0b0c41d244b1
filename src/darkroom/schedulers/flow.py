"""What the schedulers of flow-matching models share."""

from collections.abc import Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from . import process
from .base import SIGMAS, Device, Timestep, options
from .continuous import LevelScheduler

__all__ = ["FlowScheduler", "ShiftedFlowScheduler"]


class FlowScheduler(LevelScheduler, kind="flow", paper="Lipman et al. 2023"):
    """A straight path from data to noise, x = (1 - sigma) x0 + sigma eps, of which the network predicts the velocity eps - x0 (Lipman et al. 2023,
    Liu et al. 2023). `sigmas` is (steps + 1,), and `timesteps`, (steps,), are sigma x num_train_timesteps. `shift` > 1 moves the steps towards noise,
    as pictures larger than those of the training need."""

    Config = options(BaseConfig, num_train_timesteps=1000, shift=1.0)
    flow = True
    sigma_max: float = 1.0  # the ends of the table that the training drew from
    sigma_min: float

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._choose_schedule()
        if (terminal := self._option("shift_terminal", None)) and not 0 < terminal < 1:
            self._refuse("shift_terminal", terminal, "from 0 to below 1")
        if "shift" in config.names():
            self._positive("shift")
        self.shift: float = self._option("shift", 1.0)
        table = config.num_train_timesteps
        sigmas = np.arange(table, 0, -1, dtype=np.float32) / np.float32(table)
        sigmas = sigmas if self._option("use_dynamic_shifting") else process.shifted(sigmas, self.shift)
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])
        self.sigmas = torch.from_numpy(sigmas)
        self._install(sigmas * np.float32(table), None)

    def _evenly(self, steps: int) -> np.ndarray:
        """Sigmas of a run, (steps,): evenly over the table, whose ends have been shifted already, and shifted again by most callers."""
        table = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * table, self.sigma_min * table, steps) / table

    def x0(self, out: Tensor, x: Tensor, sigma: Any) -> Tensor:
        """The data that this velocity leads to from x."""
        return process.X0["flow_prediction"](out, x, None, sigma)

    def _noise(self, noise: Tensor | None) -> Tensor:
        if noise is None:
            raise self._error("No noise to mix the sample with.", "scale_noise, noise", None, "a tensor like sample")
        return noise

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma eps for data and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        return self.add_noise(sample, self._noise(noise), torch.as_tensor(timestep))


class ShiftedFlowScheduler(FlowScheduler):
    """A flow whose steps are shifted in one of several ways. `use_dynamic_shifting` takes the shift from the call's `mu`, which pipelines place
    between `base_shift` and `max_shift` by the length of the sequence, `base_image_seq_len` to `max_image_seq_len`; `time_shift_type` says whether mu
    is its logarithm ("exponential") or itself ("linear"). `shift_terminal` is where sigma is before the last step, one of `use_..._sigmas` spaces the
    steps anew between their ends, and `invert_sigmas` counts sigma from noise (0) to data (1)."""

    Config = options(FlowScheduler.Config, use_dynamic_shifting=False, base_shift=(float | None, 0.5), max_shift=(float | None, 1.15),
                     base_image_seq_len=256, max_image_seq_len=4096, invert_sigmas=False, shift_terminal=None, **SIGMAS,
                     time_shift_type=("exponential", "linear"))  # fmt: skip

    def _renoised(self, x0: Tensor, sigma: Any, generator: Generators) -> Tensor:
        """x0 with fresh noise of this level."""
        return (1 - sigma) * x0 + sigma * randn(x0.shape, generator, x0.device, x0.dtype)

    def set_shift(self, shift: float) -> None:
        """Use this shift for the runs to come."""
        self.shift = shift

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """The sigmas t in (0, 1], moved by mu."""
        return process.time_shift(mu, sigma, t, self.config.time_shift_type)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """The sigmas t, stretched to end at `shift_terminal`."""
        return process.stretched(t, self.config.shift_terminal)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None,
                      mu: float | None = None, timesteps: Sequence[float] | None = None) -> None:  # fmt: skip
        """Lay out a run: of `num_inference_steps`, through `sigmas` in (0, 1], which are shifted as configured, or at `timesteps`, which tell the
        network other times than those that the step is made for, unless `sigmas` come with them. `mu` is the shift of this run."""
        config, table = self.config, np.float32(self.config.num_train_timesteps)
        if config.use_dynamic_shifting and mu is None:
            raise self._error("The shift of this run is not known.", "set_timesteps, mu", None, "the shift, with use_dynamic_shifting=True")
        steps = self._steps(num_inference_steps, sigmas=sigmas, timesteps=timesteps)
        told = None if timesteps is None else np.asarray(timesteps, dtype=np.float32)
        levels = np.asarray(sigmas, dtype=np.float32) if sigmas is not None else self._evenly(steps) if told is None else told / table
        with np.errstate(divide="ignore", invalid="ignore"):
            levels = self.time_shift(mu or 0.0, 1.0, levels) if config.use_dynamic_shifting else process.shifted(levels, self.shift)
            levels = self.stretch_shift_to_terminal(levels) if config.shift_terminal else levels
        if not np.isfinite(levels).all():
            raise self._error("These sigmas cannot be shifted.", "set_timesteps", levels.tolist(), "between 0 and 1, not all of them 1")
        if self.sigma_schedule is not None:
            if levels[-1] < 0 or (levels[-1] == 0 and self.sigma_schedule == "exponential"):
                raise self._error("No end for this schedule.", f"set_timesteps, {self.sigma_schedule} sigmas", levels[-1], "above 0")
            levels = self._by_schedule(levels[0], levels[-1], steps)
        levels = 1 - levels.astype(np.float32) if config.invert_sigmas else levels.astype(np.float32)
        self._lay_out(levels * table if told is None or config.invert_sigmas else told, levels, device, end=int(config.invert_sigmas))
        self.num_inference_steps = steps
