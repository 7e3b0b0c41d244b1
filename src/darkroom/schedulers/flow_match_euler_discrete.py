"""Euler steps along a straight path."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import Stepped, Timestep
from .flow import ShiftedFlowConfig, ShiftedFlowScheduler

__all__ = ["FlowMatchEulerDiscreteScheduler"]


class FlowMatchEulerDiscreteScheduler(ShiftedFlowScheduler):
    """Euler's method on dx/dsigma = v, the velocity that the network predicts (Lipman et al. 2023; Esser et al. 2024): the scheduler that
    Stable Diffusion 3, Flux and most later models come with; 20 to 50 steps, or 1 to 8 with distilled ones. `stochastic_sampling` predicts x0
    at each step and adds fresh noise instead, as models distilled for that need.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(ShiftedFlowConfig):
        stochastic_sampling: bool = False

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
        s_noise: float = 1.0, generator: Generators = None, per_token_timesteps: Tensor | None = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `per_token_timesteps` (B, N) gives each token of a sample (B, N, C) its own noise level: it
        goes to the next lower one of the schedule, and stays float32. The options s_* have no effect; calls that pass them are common.
        """
        x, ends = sample.float(), self._ends(timestep)
        sigma, sigma_next = ends if per_token_timesteps is None else self._token_ends(per_token_timesteps)
        if self.config.stochastic_sampling:
            noise = randn(x.shape, generator, x.device, x.dtype)
            prev = (1 - sigma_next) * self.x0(model_output, x, sigma) + sigma_next * noise
        elif per_token_timesteps is None:
            prev = x + (sigma_next - sigma) * model_output
        else:  # away from the data: so in the reference, whose callers hand over the negative velocity
            prev = x + (sigma - sigma_next) * model_output
        return self._result(return_dict, prev.to(model_output.dtype) if per_token_timesteps is None else prev)

    def _token_ends(self, timesteps: Tensor) -> tuple[Any, Any]:
        """The sigmas that each token of timesteps (B, N) goes from and to: (B, N, 1)."""
        sigma, device = timesteps / self.config.num_train_timesteps, timesteps.device
        levels = self._once(device, lambda: self.sigmas.to(device)[:, None, None])
        return sigma[..., None], torch.where(levels < sigma - 1e-6, levels, 0.0).amax(0)[..., None]
