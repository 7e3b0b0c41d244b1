"""Two steps from noise to the pixels of a latent."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import numpy as np
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from . import process
from .base import Device, Scheduler, Stepped, Timestep
from .edm import preconditioning

__all__ = ["ConsistencyDecoderScheduler"]

TIMESTEPS = (1008, 512)


class ConsistencyDecoderScheduler(Scheduler):
    """The schedule of DALL-E 3's consistency decoder (Betker et al. 2023; Song et al. 2023, algorithm 1): at two fixed timesteps, x0 is predicted
    with EDM's preconditioning. The sample is alpha x0 + sigma eps on a cosine schedule (Nichol & Dhariwal 2021).
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 1024
        sigma_data: float = 0.5

    kind = "consistency"
    paper = "Song et al. 2023"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if config.num_train_timesteps <= max(TIMESTEPS):
            self._refuse("num_train_timesteps", config.num_train_timesteps, f"more than {max(TIMESTEPS)}")
        if not config.sigma_data > 0:
            self._refuse("sigma_data", config.sigma_data, "above 0")
        bar = (1 - process.betas(config.num_train_timesteps, 0, 1, "squaredcos_cap_v2")).cumprod(0)
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = bar.sqrt(), (1 - bar).sqrt()
        stretch = (1 / bar).sqrt()  # from variance-preserving coordinates to those of EDM
        c_skip, self.c_out, c_in = preconditioning((1 / bar - 1).sqrt(), config.sigma_data)
        self.c_skip, self.c_in = stretch * c_skip, stretch * c_in
        self._install(np.array(TIMESTEPS), None)

    @property
    def init_noise_sigma(self) -> Tensor:  # type: ignore[override]
        return self.sqrt_one_minus_alphas_cumprod[TIMESTEPS[0]]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Lay out a run, of 2 steps."""
        if num_inference_steps != len(TIMESTEPS):
            raise self._error("A run has 2 steps.", "set_timesteps, num_inference_steps", num_inference_steps, 2)
        self.num_inference_steps = num_inference_steps
        self._install(np.array(TIMESTEPS), device)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """c_in x, of unit variance."""
        return sample * self.c_in[self.number(timestep)]  # type: ignore[arg-type]

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next timestep, or x0 after the last."""
        t, place = self.number(timestep), self.index_for_timestep(timestep)
        x0 = self.c_out[t] * model_output + self.c_skip[t] * sample
        if place == len(TIMESTEPS) - 1:
            return self._result(return_dict, x0)
        alpha, sigma = (c[TIMESTEPS[place + 1]].to(x0.dtype) for c in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return self._result(return_dict, alpha * x0 + sigma * randn(x0.shape, generator, x0.device, x0.dtype))
