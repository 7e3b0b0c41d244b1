"""Multistep sampling from consistency models."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from .base import Device, Stepped, Timestep
from .continuous import LevelScheduler

__all__ = ["CMStochasticIterativeScheduler"]


class CMStochasticIterativeScheduler(LevelScheduler):
    """Predict x0, then add noise of the next sigma (Song et al. 2023, algorithm 1), in 1 or more steps: for consistency models of the EDM family.
    The sigmas are `num_train_timesteps` points between `sigma_max` and `sigma_min` (Karras et al. 2022, eq. 5, with `rho`), of which a run takes
    some; `s_noise` scales the noise, and `clip_denoised` keeps x0 in [-1, 1].
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 40
        sigma_min: float = 0.002
        sigma_max: float = 80.0
        sigma_data: float = 0.5
        s_noise: float = 1.0
        rho: float = 7.0
        clip_denoised: bool = True

    kind = "consistency"
    paper = "Song et al. 2023"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._positive("sigma_min", "sigma_data", "rho")
        if config.sigma_max < config.sigma_min:
            self._refuse("sigma_max", config.sigma_max, f"at least sigma_min = {config.sigma_min}")
        sigmas = self._karras(np.linspace(0, 1, config.num_train_timesteps))
        self.sigmas = torch.from_numpy(sigmas)
        self._install(self.sigma_to_t(sigmas), None)

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        return self.config.sigma_max

    def sigma_to_t(self, sigmas: Any) -> np.ndarray:
        """1000 c_noise, which the network takes for its timestep."""
        return 250 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """Lay out a run of `num_inference_steps`, or at `timesteps`: descending positions in the table, the highest noise last."""
        table = self.config.num_train_timesteps
        if timesteps is None:
            steps = self._steps(num_inference_steps)
            if steps > table:
                raise self._error("A run cannot have this number of steps.", "set_timesteps, num_inference_steps", steps, f"1 to {table}")
            self.num_inference_steps, places = steps, np.arange(steps) * (table // steps)
        else:
            if num_inference_steps is not None:
                raise self._error("Exactly one of these is needed.", "set_timesteps", "both", "num_inference_steps or timesteps")
            self._steps(None, timesteps=timesteps)
            places = np.asarray(timesteps, dtype=np.int64)[::-1]
            if places[0] < 0 or places[-1] >= table or (np.diff(places) <= 0).any():
                expected = f"descending, from at most {table - 1} to at least 0"
                raise self._error("Timesteps that cannot be followed.", "set_timesteps, timesteps", list(timesteps), expected)
        sigmas = self._karras(places / max(table - 1, 1))
        self._lay_out(self.sigma_to_t(sigmas), sigmas, device, end=self.config.sigma_min)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """x / sqrt(sigma^2 + sigma_data^2), of unit variance. The first call of a run finds its position by `timestep`."""
        return sample / self._conditions(self._position(timestep))[0]  # type: ignore[arg-type]

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out of x0 = c_skip x + c_out F(x): 1 and 0 at sigma_min (Song et al. 2023, app. C)."""
        data, above = self.config.sigma_data, sigma - self.config.sigma_min
        return data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5

    def _conditions(self, index: int) -> tuple[Tensor, ...]:
        """1 / c_in, c_skip, c_out, and the deviation of the noise after the step, of a position: () each."""

        def make() -> list[tuple[Tensor, ...]]:
            sigmas, low, high = self.sigmas, self.config.sigma_min, self.config.sigma_max
            after = torch.cat([sigmas[1:], sigmas[-1:]]).clamp(low, high)
            rows = (sigmas**2 + self.config.sigma_data**2) ** 0.5, *self.get_scalings_for_boundary_condition(sigmas)
            return list(zip(*(row.unbind() for row in (*rows, (after**2 - low**2).clamp(min=0) ** 0.5))))

        return self._once("conditions", make)[index]

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma; x0 itself where the run has one step."""
        self._ends(timestep)
        _, c_skip, c_out, std = self._conditions(self._position(timestep))
        x0 = c_out * model_output + c_skip * sample
        prev = x0.clamp(-1, 1) if self.config.clip_denoised else x0
        if len(self._numbers) > 1:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + noise * self.config.s_noise * std
        return self._result(return_dict, prev)
