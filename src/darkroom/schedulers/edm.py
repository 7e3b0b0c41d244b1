"""What the schedulers for EDM-preconditioned networks share."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Tensor
from ..config import Config
from .base import Device, Timestep
from .continuous import LevelScheduler

__all__ = ["EDMConfig", "EDMScheduler", "preconditioning"]

SCHEDULES = Literal["karras", "exponential"]
FINAL = Literal["zero", "sigma_min"]


@dataclass(frozen=True, eq=False, repr=False)
class EDMConfig(Config):
    """The range of sigma, the standard deviation of the data, and how a run spaces its sigmas: by Karras et al. with exponent `rho`, or evenly in
    the logarithm.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: SCHEDULES = "karras"
    num_train_timesteps: int = 1000
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    rho: float = 7.0


def preconditioning(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any]:
    """c_skip, c_out and c_in: x0 = c_skip x + c_out F(c_in x) has unit targets and inputs at every sigma (Karras et al. 2022, table 1)."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total**0.5, 1 / total**0.5


class EDMScheduler(LevelScheduler):
    """The sample is x0 + sigma eps, and the network is preconditioned as in EDM. "v_prediction" says that it predicts with the other sign."""

    Config = EDMConfig

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._positive("sigma_min", "sigma_data", "rho")
        if config.sigma_max < config.sigma_min:
            self._refuse("sigma_max", config.sigma_max, f"at least sigma_min = {config.sigma_min}")

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
        make = lambda: list(zip(*(c.unbind() for c in preconditioning(self.sigmas, self.config.sigma_data))))  # noqa: E731
        return self._once("conditions", make)[index]

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
