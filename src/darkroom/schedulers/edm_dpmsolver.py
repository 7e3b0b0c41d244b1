"""DPM-Solver++ for EDM-preconditioned networks, with its relative for Stable Audio."""

import math
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import BrownianTreeNoiseSampler, Generators, randn
from .base import PREDICTIONS, THRESHOLDS, Device, Stepped, Timestep, options
from .dpmsolver_multistep import DPMSolverMultistepScheduler
from .edm import EDMScheduler

__all__ = ["CosineDPMSolverMultistepScheduler", "EDMDPMSolver", "EDMDPMSolverMultistepScheduler"]

SOLVER = {
    "solver_type": ("midpoint", "heun"), "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": ("zero", "sigma_min")
}  # fmt: skip


class EDMDPMSolver(EDMScheduler, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DPM-Solver++ over the sigmas of EDM, where alpha is 1 throughout."""

    data = True

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.stochastic = self._option("algorithm_type", "sde").startswith("sde")
        self._begin(torch.linspace(0, 1, self.config.num_train_timesteps), end=0.0)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:  # type: ignore[override]
        """Lay out a run of `num_inference_steps` steps."""
        steps = self._steps(num_inference_steps)
        self._begin(torch.linspace(0, 1, steps), device, 0.0 if self.config.final_sigmas_type == "zero" else self.config.sigma_min)
        self.num_inference_steps = steps

    def _draw(self, index: int, x0: Tensor, generator: Generators) -> Tensor | None:
        """The noise of the step from this position, of unit variance."""
        return randn(x0.shape, generator, x0.device, x0.dtype) if self.stochastic else None

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,  # type: ignore[override]
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma, in the dtype of the sample."""
        index, x0 = self._remember(model_output, timestep, sample)
        noise, stays = self._draw(index, x0, generator), self.levels[index] == self.levels[index + 1]
        return self._result(return_dict, sample if stays else self._update(index, self._order(index), sample, noise))


class EDMDPMSolverMultistepScheduler(EDMDPMSolver, paper="Karras et al. 2022; Lu et al. 2022"):
    """DPM-Solver++ and its SDE form (Lu et al. 2022b), multistep, of orders 1 to 3, for networks with EDM's preconditioning: as good as Euler in half
    the steps. The options are those of DPMSolverMultistepScheduler and EDMEulerScheduler."""

    Config = options(EDMScheduler.Config, prediction_type=PREDICTIONS, solver_order=(2, 1, 3), **THRESHOLDS,
                     algorithm_type=("dpmsolver++", "sde-dpmsolver++"), **SOLVER)  # fmt: skip


class CosineDPMSolverMultistepScheduler(EDMDPMSolver, paper="Lu et al. 2022; Evans et al. 2024", draws="yes"):
    """The SDE form of DPM-Solver++ (Lu et al. 2022b), multistep, with the noise of one Brownian path, for networks whose time is 2 atan(sigma) / pi
    (v-diffusion on a cosine schedule): Stable Audio, which has 100 to 200 steps. Needs torchsde."""

    Config = options(BaseConfig, sigma_min=0.3, sigma_max=(float, 500), sigma_data=1.0, sigma_schedule=("exponential", "karras"),
                     num_train_timesteps=1000, solver_order=(2, 1, 3), prediction_type=("v_prediction", "epsilon", "sample"), rho=7.0,
                     **SOLVER)  # fmt: skip
    noise_sampler: BrownianTreeNoiseSampler | None = None
    _history = ("noise_sampler",)

    def precondition_noise(self, sigma: Any) -> Tensor:
        """The angle of (alpha, sigma), of a right one."""
        return torch.as_tensor(sigma).atan() / math.pi * 2

    def _draw(self, index: int, x0: Tensor, generator: Generators) -> Tensor:
        low, high = self.config.sigma_min, self.config.sigma_max
        if self.noise_sampler is None:
            given = generator is None or isinstance(generator, torch.Generator)
            seed = generator and generator.initial_seed() if given else [g.initial_seed() for g in generator]  # type: ignore[union-attr]
            self.noise_sampler = BrownianTreeNoiseSampler(x0, low, high, seed, type(self).__name__)  # type: ignore[arg-type]
        # the path has ends, and steps shorter than its resolution would never be found
        sigma, sigma_next = torch.tensor(self.levels[index : index + 2], dtype=torch.float64).clamp(low, high)
        return self.noise_sampler(sigma, sigma_next) if sigma - sigma_next > 1e-6 else torch.zeros_like(x0)
