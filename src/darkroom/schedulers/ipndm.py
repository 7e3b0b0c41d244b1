"""A linear multistep method on a circle."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from .base import Device, Stepped, Timestep
from .continuous import ContinuousScheduler
from .pndm import ADAMS_BASHFORTH

__all__ = ["IPNDMScheduler"]


FLOOR = torch.tensor(1e-8)  # of alpha, which is 0 at the start


class IPNDMScheduler(ContinuousScheduler):
    """Adams-Bashforth of up to fourth order over the last predictions of eps (Zhang & Chen 2023, after Liu et al. 2022), for networks that predict
    v in continuous time: Dance Diffusion. The sample is alpha x0 + sigma eps with `alphas` and `betas` (steps + 1,) for alpha and sigma, and
    `timesteps` are their angles as shares of a right one. `ets` are the last predictions, oldest first.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 1000
        trained_betas: tuple[float, ...] | None = None

    accuracy = "4"
    paper = "Zhang & Chen 2023"

    def _assemble(self, config: Any) -> None:
        if hasattr(config.trained_betas, "tolist"):
            config = config.replace(trained_betas=config.trained_betas.tolist())
        super()._assemble(config)
        if config.trained_betas is not None and not (len(config.trained_betas) > 1 and all(0 <= b <= 1 for b in config.trained_betas)):
            self._refuse("trained_betas", config.trained_betas, "2 or more in [0, 1]")
        self.set_timesteps(config.num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self.ets: tuple[Tensor, ...] = ()

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`, or through `trained_betas`, one more than steps, where the configuration has them."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        if self.config.trained_betas is None:
            self.betas = torch.sin(torch.linspace(1, 0, steps + 1) * math.pi / 2) ** 2
        else:
            self.betas = torch.tensor(self.config.trained_betas, dtype=torch.float32)
        self.alphas = (1 - self.betas**2) ** 0.5
        self._course: list[tuple[Tensor, Tensor]] = []  # both at every position, once they are needed
        self._install((torch.atan2(self.betas, self.alphas) / math.pi * 2)[:-1].numpy(), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next angle."""
        index = self._position(timestep)
        if not self._course:
            self._course.extend(zip(self.alphas.unbind(), self.betas.unbind()))
        (alpha, sigma), (alpha_next, sigma_next) = self._course[index], self._course[index + 1]
        self.ets = (*self.ets[-3:], sample * sigma + model_output * alpha)
        divisor, weights = ADAMS_BASHFORTH.get(len(self.ets), (1, (1,)))
        eps = self.ets[-1] * weights[0]
        for weight, older in zip(weights[1:], self.ets[-2::-1]):
            eps = eps + weight * older
        eps = eps / divisor
        return self._result(return_dict, alpha_next * ((sample - sigma * eps) / max(alpha, FLOOR)) + eps * sigma_next)
