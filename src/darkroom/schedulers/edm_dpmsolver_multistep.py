"""DPM-Solver++ for EDM networks."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import Device, Stepped, Timestep
from .dpmsolver_multistep import FOREIGN, DPMSolverMultistepScheduler
from .edm import FINAL, EDMConfig, EDMScheduler

__all__ = ["EDMDPMSolver", "EDMDPMSolverMultistepScheduler"]


class EDMDPMSolver(EDMScheduler, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """DPM-Solver++ over the sigmas of EDM, where alpha is 1 throughout."""

    data = True

    def _assemble(self, config: Any) -> None:
        foreign = {k: FOREIGN[config[k]] for k in ("algorithm_type", "solver_type") if config.get(k) in FOREIGN}
        super()._assemble(config.replace(**foreign) if foreign else config)
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

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in the dtype of the sample."""
        index, x0 = self._remember(model_output, timestep, sample)
        noise, stays = self._draw(index, x0, generator), self.levels[index] == self.levels[index + 1]
        return self._result(return_dict, sample if stays else self._update(index, self._order(index), sample, noise))


class EDMDPMSolverMultistepScheduler(EDMDPMSolver):
    """DPM-Solver++ and its SDE form (Lu et al. 2022b), multistep, of orders 1 to 3, for networks with EDM's preconditioning: as good as Euler in
    half the steps. The options are those of DPMSolverMultistepScheduler and EDMEulerScheduler.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(EDMConfig):
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"  # type: ignore[assignment]
        solver_order: Literal[2, 1, 3] = 2
        thresholding: bool = False
        dynamic_thresholding_ratio: float = 0.995
        sample_max_value: float = 1.0
        algorithm_type: Literal["dpmsolver++", "sde-dpmsolver++"] = "dpmsolver++"
        solver_type: Literal["midpoint", "heun"] = "midpoint"
        lower_order_final: bool = True
        euler_at_final: bool = False
        final_sigmas_type: FINAL = "zero"

    paper = "Karras et al. 2022; Lu et al. 2022"
