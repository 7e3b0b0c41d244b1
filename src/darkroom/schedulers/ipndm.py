"""Linear multistep sampling on a circle."""

import math
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from .base import Device, Stepped, Timestep, options
from .continuous import ContinuousScheduler
from .pndm import extrapolated

__all__ = ["IPNDMScheduler"]

FLOOR = torch.tensor(1e-8)  # of alpha, which is 0 at the start of a run


class IPNDMScheduler(ContinuousScheduler, accuracy="4", paper="Zhang & Chen 2023"):
    """Adams-Bashforth of up to fourth order over the last predictions of eps (Zhang & Chen 2023, after Liu et al. 2022), for networks that predict v
    in continuous time: Dance Diffusion. The sample is alpha x0 + sigma eps with `alphas` and `betas` (steps + 1,) for alpha and sigma, and
    `timesteps` are their angles as shares of a right one. `ets` are the last predictions, oldest first."""

    Config = options(BaseConfig, num_train_timesteps=1000, trained_betas=(tuple[float, ...] | None, None))
    ets: tuple[Tensor, ...] = ()
    _history = ("ets",)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        table = self.config.trained_betas
        if table is not None and not (len(table) > 1 and all(0 <= b <= 1 for b in table)):
            self._refuse("trained_betas", table, "2 or more in [0, 1]")
        self.set_timesteps(config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`, or through `trained_betas`, one more than steps, where the configuration has them."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        given, angles = self.config.trained_betas, torch.linspace(1, 0, steps + 1) * math.pi / 2
        self.betas = torch.sin(angles) ** 2 if given is None else torch.tensor(given, dtype=torch.float32)
        self.alphas = (1 - self.betas**2) ** 0.5
        self._install((torch.atan2(self.betas, self.alphas) / math.pi * 2)[:-1].numpy(), device)

    def _course(self) -> list[tuple[Tensor, Tensor]]:
        """alpha and sigma at every position of the run."""
        return list(zip(self.alphas.unbind(), self.betas.unbind()))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next angle."""
        index = self._position(timestep)
        (alpha, sigma), (alpha_next, sigma_next) = self._once("course", self._course)[index : index + 2]
        self.ets = (*self.ets[-3:], sample * sigma + model_output * alpha)
        eps = extrapolated(self.ets)
        return self._result(return_dict, alpha_next * ((sample - sigma * eps) / max(alpha, FLOOR)) + eps * sigma_next)
