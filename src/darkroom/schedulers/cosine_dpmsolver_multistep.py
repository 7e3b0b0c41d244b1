"""DPM-Solver++ over a Brownian path."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators
from .dpmsolver_sde import BrownianTreeNoiseSampler
from .edm import FINAL, SCHEDULES
from .edm_dpmsolver_multistep import EDMDPMSolver

__all__ = ["CosineDPMSolverMultistepScheduler"]


class CosineDPMSolverMultistepScheduler(EDMDPMSolver):
    """The SDE form of DPM-Solver++ (Lu et al. 2022b), multistep, with the noise of one Brownian path, for networks whose time is 2 atan(sigma) / pi
    (v-diffusion on a cosine schedule): Stable Audio, which has 100 to 200 steps. Needs torchsde.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        sigma_min: float = 0.3
        sigma_max: float = 500
        sigma_data: float = 1.0
        sigma_schedule: SCHEDULES = "exponential"
        num_train_timesteps: int = 1000
        solver_order: Literal[2, 1, 3] = 2
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
        rho: float = 7.0
        solver_type: Literal["midpoint", "heun"] = "midpoint"
        lower_order_final: bool = True
        euler_at_final: bool = False
        final_sigmas_type: FINAL = "zero"

    paper = "Lu et al. 2022; Evans et al. 2024"

    def _restart(self) -> None:
        super()._restart()
        self.noise_sampler: BrownianTreeNoiseSampler | None = None

    def precondition_noise(self, sigma: Any) -> Tensor:
        """The angle of (alpha, sigma), of a right one."""
        return torch.as_tensor(sigma).atan() / math.pi * 2

    def _draw(self, index: int, x0: Tensor, generator: Generators) -> Tensor:
        low, high = self.config.sigma_min, self.config.sigma_max
        if self.noise_sampler is None:
            given = generator is None or isinstance(generator, torch.Generator)
            seed = generator and generator.initial_seed() if given else [g.initial_seed() for g in generator]  # type: ignore[union-attr]
            self.noise_sampler = BrownianTreeNoiseSampler(x0, low, high, seed)  # type: ignore[arg-type]
        # the path has ends, and steps shorter than its resolution would never be found
        sigma, sigma_next = torch.tensor(self.levels[index : index + 2], dtype=torch.float64).clamp(low, high)
        return self.noise_sampler(sigma, sigma_next) if sigma - sigma_next > 1e-6 else torch.zeros_like(x0)
