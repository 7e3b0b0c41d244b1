"""What the samplers of k-diffusion share: they step along dx/dsigma = (x - x0) / sigma (Karras et al. 2022)."""

import math
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from . import process
from .base import Device, Scheduler, SigmaScheduler, Timestep

__all__ = ["ExplodingScheduler", "TwoStages"]


class ExplodingScheduler(SigmaScheduler):
    """The sample is x0 + sigma eps, and the network sees it divided by sqrt(sigma^2 + 1) (Karras et al. 2022, table 1, VP). For a flow it is (1 -
    sigma) x0 + sigma eps, as the network sees it. There too (x - x0) / sigma is the slope, eps - x0, so the solvers of the ODE are the same; it has
    no singularity at sigma = 1, where a noise-to-signal ratio has one."""

    _time: ClassVar[type[np.floating[Any]]] = np.float32  # in what timesteps are counted

    @property
    def init_noise_sigma(self) -> Tensor | float:  # type: ignore[override]
        if self.flow:
            return 1.0
        top = self.sigmas.max()
        return top if self.config.timestep_spacing in ("linspace", "trailing") else (top**2 + 1) ** 0.5

    def _space(self, steps: int, timesteps: Any = None, table: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas of a run, (steps,) each: by the options, over another size of the table, or at the given timesteps."""
        config, given = self.config, timesteps is not None
        if not given:
            timesteps = process.spaced(config.timestep_spacing, steps, table or config.num_train_timesteps, config.steps_offset)
            if self.flow:
                sigmas = self._shifted((timesteps + 1) / (table or config.num_train_timesteps))
                timesteps = sigmas * config.num_train_timesteps
        timesteps = np.asarray(timesteps, dtype=self._time)
        if given or not self.flow:
            sigmas = self._sigmas_at(timesteps)
        if self._option("interpolation_type") == "log_linear":
            top, bottom = (sigmas[0], sigmas[-1]) if self.flow else (self.sigma_table[-1], self.sigma_table[0])
            sigmas = torch.linspace(math.log(top), math.log(bottom), steps + 1).exp().numpy()  # in float32, which large sigmas show
        if self.sigma_schedule is not None:
            ends = (self.sigma_table[-1], self.sigma_table[0]) if self.flow else (sigmas[0], sigmas[-1])
            timesteps, sigmas = self._scheduled(*ends, steps)
        return timesteps, sigmas

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        timesteps, sigmas = self._space(self.num_inference_steps)
        self._lay_out(timesteps.astype(np.float32), sigmas, device)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """x / sqrt(sigma^2 + 1), of unit variance; a flow's x as it is. The first call of a run finds its position by `timestep`."""
        position = self._position(timestep)  # type: ignore[arg-type]
        return sample if self.flow else sample / self._input(position)[1]

    def _input(self, position: int) -> tuple[Tensor, Tensor]:
        """The sigma of the sample that the network is about to see, and sqrt(sigma^2 + 1): () each."""
        return self._scales("sigmas")[position]

    def _scales(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Sigma and sqrt(sigma^2 + 1) for each of one of the rows of sigmas."""
        return self._once(name, lambda: list(zip(getattr(self, name).unbind(), ((getattr(self, name) ** 2 + 1) ** 0.5).unbind())))

    def _differences(self) -> tuple[Tensor, ...]:
        """From each sigma to the next."""
        return self._once("differences", self.sigmas.diff().unbind)

    def x0(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 from the network's output for the (unscaled) sample x, limited as the configuration says."""
        kind = self.config.prediction_type
        return self.limit(process.X0[kind](out, x, 1 - sigma, sigma) if self.flow else process.EXPLODING[kind](out, x, sigma))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps, or a flow's (1 - sigma) x0 + sigma eps, for x0 and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        sigma = self._levels(timesteps, original_samples)
        return ((1 - sigma) * original_samples if self.flow else original_samples) + noise * sigma

    def _churned(self, x: Tensor, like: Tensor, sigma: Tensor, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float,
                 generator: Generators) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The sample with its share of noise over the run, drawn as `like`, and the sigma that it has then (Karras et al. 2022, algorithm 2)."""
        gamma = min(s_churn / (len(self.levels) - 1), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        raised = sigma * (gamma + 1) if gamma else sigma
        if gamma > 0:
            x = x + randn(like.shape, generator, like.device, like.dtype) * s_noise * (raised**2 - sigma**2) ** 0.5
        return x, raised

    def _ends(self, timestep: Timestep) -> tuple[Tensor, Tensor]:
        """The sigmas that a step goes from and to. Raises InputError for a whole number."""
        self._no_position(timestep)
        index = self._position(timestep)
        return self.marks[index], self.marks[index + 1]


class TwoStages(Scheduler, accuracy="2"):
    """Steps of two calls, at their start and further on, which `timesteps` holds both."""

    order = 2
    sample: Tensor | None = None  # where the step under way began
    _history = ("sample",)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call begins a step, rather than ends one."""
        return self.sample is None
