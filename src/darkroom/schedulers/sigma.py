"""Schedulers that place their steps by sigma, the noise of x / alpha."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Device, KarrasScheduler, Timestep
from .process import EXPLODING, SIGMA_SCHEDULES, sigma_to_t, spaced, split

__all__ = ["ExplodingScheduler", "SigmaScheduler"]


class SigmaScheduler(KarrasScheduler):
    """A run is a row of descending `sigmas`, (steps + 1,), in float32 on the CPU; the sample stays variance-preserving."""

    sigmas: Tensor
    split = staticmethod(split)  # sigma -> (alpha, sigma) of the sample that the network sees

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self._option("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # the smallest float16 above 0: sigma stays finite
        chosen = [name for name in SIGMA_SCHEDULES if self._option(f"use_{name}_sigmas")]
        if len(chosen) > 1:
            self._refuse(" and ".join(f"use_{name}_sigmas" for name in chosen), True, "only one of them")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(config, name, None)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                self._refuse(name, value, "above 0")
        self.sigma_schedule = chosen[0] if chosen else None
        self.sigma_table = (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).numpy()  # ascending, (num_train_timesteps,)
        timesteps = np.arange(config.num_train_timesteps, dtype=np.float32)[::-1].copy()
        self._lay_out(timesteps, self.sigma_table[::-1], None, end=0)

    def _sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        return np.interp(timesteps, np.arange(len(self.sigma_table)), self.sigma_table)

    def _by_schedule(self, high: float, low: float, n: int) -> np.ndarray:
        """n sigmas by the chosen schedule. Ends that the configuration names win, also those kept for another class."""
        least, most = (getattr(self.config, name, None) for name in ("sigma_min", "sigma_max"))
        schedule = SIGMA_SCHEDULES[self.sigma_schedule]  # type: ignore[index]
        return schedule(float(high) if most is None else most, float(low) if least is None else least, n)

    def _lay_out(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device, end: float | None = None) -> None:
        """Make this the schedule of a new run. Sigmas stay on the CPU, where reading them waits for no device."""
        if end is None:
            end = self.sigma_table[0] if self._option("final_sigmas_type") == "sigma_min" else 0
        self.sigmas = torch.from_numpy(np.append(sigmas, end).astype(np.float32))
        self._install(timesteps, device)

    def _free_timesteps(self, *blocked: str) -> None:
        """Custom timesteps cannot go with options that choose the timesteps. Raises InputError."""
        for name in (*(f"use_{schedule}_sigmas" for schedule in SIGMA_SCHEDULES), *blocked):
            if self._option(name):
                what, fix = "The configuration already chooses the timesteps.", "Pass num_inference_steps instead."
                raise self._error(what, "set_timesteps, timesteps", f"timesteps, with {name}", fix=fix)

    def _levels(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Sigmas at timesteps () or (B,), or at the run's position where `set_begin_index` named one: (B, 1, ...)."""
        if self.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps.reshape(-1).tolist()]
        else:
            indices = [self.begin_index if self.step_index is None else self.step_index] * timesteps.numel()
        return self.sigmas[indices].to(like).reshape(-1, *[1] * (like.ndim - 1))

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self._levels(timesteps, like))


class ExplodingScheduler(SigmaScheduler):
    """The sample is x0 + sigma eps, and the network sees it divided by sqrt(sigma^2 + 1) (Karras et al. 2022, table 1, VP)."""

    @property
    def init_noise_sigma(self) -> Tensor:  # type: ignore[override]
        top = self.sigmas.max()
        return top if self.config.timestep_spacing in ("linspace", "trailing") else (top**2 + 1) ** 0.5

    def _space(self, steps: int, timesteps: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas of a run, (steps,) each, by the options or at the given timesteps."""
        config = self.config
        if timesteps is None:
            timesteps = spaced(config.timestep_spacing, steps, config.num_train_timesteps, config.steps_offset)
        timesteps = np.asarray(timesteps, dtype=np.float32)
        sigmas = self._sigmas_at(timesteps)
        if self._option("interpolation_type") == "log_linear":
            sigmas = SIGMA_SCHEDULES["exponential"](self.sigma_table[-1], self.sigma_table[0], steps + 1)
        if self.sigma_schedule is not None:
            sigmas = self._by_schedule(sigmas[0], sigmas[-1], steps)
            timesteps = sigma_to_t(sigmas, self.sigma_table).astype(np.float32)
        return timesteps, sigmas

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._lay_out(*self._space(self.num_inference_steps), device)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """x / sqrt(sigma^2 + 1), of unit variance. The first call of a run finds its position by `timestep`."""
        sigma = self.sigmas[self._position(timestep)]  # type: ignore[arg-type]
        return sample / (sigma**2 + 1) ** 0.5

    def x0(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 from the network's output for the (unscaled) sample x, limited as the configuration says."""
        return self.limit(EXPLODING[self.config.prediction_type](out, x, sigma))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        return original_samples + noise * self._levels(timesteps, original_samples)

    def _ends(self, timestep: Timestep) -> tuple[Tensor, Tensor]:
        """The sigmas that a step goes from and to. Raises InputError for a whole number, nearly always a position taken for a timestep."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            expected = "an item of timesteps, which are floats"
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, expected)
        index = self._position(timestep)
        return self.sigmas[index], self.sigmas[index + 1]
