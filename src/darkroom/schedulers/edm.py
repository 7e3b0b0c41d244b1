"""Euler steps for EDM-preconditioned networks, and the base of their schedulers."""

import math
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators
from .base import Device, Stepped, Timestep, options
from .continuous import LevelScheduler

__all__ = ["EDMEulerScheduler", "EDMScheduler", "preconditioning"]


def preconditioning(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    """c_skip, c_out and c_in: x0 = c_skip x + c_out F(c_in x) has unit targets and inputs at every sigma (Karras et al. 2022, table 1)."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total**0.5, 1 / total**0.5


class EDMScheduler(LevelScheduler, paper="Karras et al. 2022"):
    """The sample is x0 + sigma eps, and the network is preconditioned as in EDM, for data of the standard deviation `sigma_data`. "v_prediction" says
    that it predicts with the other sign. A run spaces its sigmas by Karras et al. with exponent `rho`, or evenly in the logarithm."""

    Config = options(BaseConfig, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule=("karras", "exponential"), num_train_timesteps=1000,
                     prediction_type=("epsilon", "v_prediction"), rho=7.0)  # fmt: skip

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._has_ends()

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        return (self.config.sigma_max**2 + 1) ** 0.5

    def _begin(self, ramp: Tensor, device: Device = None, end: float | None = None) -> None:
        """Lay out a run at these shares of the way from the highest sigma to the lowest: (steps,)."""
        if self.config.sigma_schedule == "karras":
            sigmas = self._karras(ramp).float()
        else:
            low, high = torch.tensor([self.config.sigma_min, self.config.sigma_max], dtype=torch.float64).log().tolist()
            sigmas = torch.linspace(low, high, len(ramp)).exp().flip(0)
        if end is None:
            end = 0.0 if self.config.final_sigmas_type == "zero" else float(sigmas[-1])
        self.sigmas = torch.cat([sigmas, torch.tensor([end]).minimum(sigmas[-1])])
        self._install(self.precondition_noise(sigmas).numpy(), device)

    def precondition_noise(self, sigma: Any) -> Tensor:
        """c_noise, the timestep of a sigma."""
        return 0.25 * torch.log(torch.as_tensor(sigma))

    def precondition_inputs(self, sample: Tensor, sigma: Any) -> Tensor:
        """What the network sees of the sample."""
        return sample * preconditioning(sigma, self.config.sigma_data)[2]

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: Any) -> Tensor:
        """x0 from the network's output."""
        return self._denoised(sample, model_output, *preconditioning(sigma, self.config.sigma_data)[:2])

    def _denoised(self, x: Tensor, out: Tensor, c_skip: Any, c_out: Any) -> Tensor:
        kind = self.config.prediction_type
        return out if kind == "sample" else c_skip * x + (-c_out if kind == "v_prediction" else c_out) * out

    def _conditions(self, index: int) -> tuple[Tensor, ...]:
        """c_skip, c_out and c_in of a position: () each."""
        rows = self._once("conditions", lambda: list(zip(*(c.unbind() for c in preconditioning(self.sigmas, self.config.sigma_data)))))
        return rows[index]

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """x0 at the position of the run, limited as configured."""
        return self.limit(self._denoised(sample, model_output, *self._conditions(self.step_index or 0)[:2]))

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """c_in x, of unit variance. The first call of a run finds its position by `timestep`."""
        return sample * self._conditions(self._position(timestep))[2]  # type: ignore[arg-type]

    def split(self, sigma: Any) -> tuple[Any, Any]:
        """(alpha, sigma) of the sample."""
        return sigma**0, sigma

    def x0_and_eps(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps from the sample and the network's output."""
        x0 = self.precondition_outputs(x, out, sigma)
        return x0, (x - x0) / sigma


class EDMEulerScheduler(EDMScheduler, draws="optional"):
    """Euler steps along dx/dsigma, with optional churn (Karras et al. 2022, algorithm 2 without its correction), for networks with EDM's
    preconditioning: Playground v2.5, CosXL ("exponential", sigma_data = 1) and the like; 25 to 50 steps."""

    Config = options(EDMScheduler.Config, final_sigmas_type=("zero", "sigma_min"))

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._begin(torch.arange(config.num_train_timesteps + 1, dtype=torch.float64) / config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None,
                      sigmas: Tensor | Sequence[float] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or through `sigmas`: not noise levels, but the shares in [0, 1] of the way from the highest to the
        lowest, as the reference takes them."""
        steps = self._steps(num_inference_steps, sigmas=sigmas)  # type: ignore[arg-type]
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        self._begin(ramp if sigmas is None else torch.as_tensor(sigmas, dtype=torch.float64).cpu(), device)
        self.num_inference_steps = steps

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
             s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
             pred_original_sample: Tensor | None = None) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `s_churn` is noise, of standard deviation `s_noise`, added and removed again over the whole run
        between the sigmas `s_tmin` and `s_tmax`. `pred_original_sample` is x0 where it is known, instead of `model_output`."""
        sigma, sigma_next = self._ends(timestep)
        x, raised = self._churned(sample.float(), model_output, sigma, s_churn, s_tmin, s_tmax, s_noise, generator)
        if (x0 := pred_original_sample) is None:
            churned = raised is not sigma
            x0 = self.precondition_outputs(x, model_output, raised) if churned else self.convert_model_output(model_output, x)
        prev = x + (x - x0) / raised * (sigma_next - raised)
        return self._result(return_dict, prev.to(model_output.dtype), x0)
