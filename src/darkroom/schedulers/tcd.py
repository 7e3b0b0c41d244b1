"""Multistep sampling from trajectory consistency models."""

from dataclasses import dataclass
import numpy as np
from torch import Tensor
from ..core.random import Generators, randn
from ..outputs import Output
from .base import Stepped, Timestep
from .lcm import LCMScheduler

__all__ = ["TCDScheduler", "TCDSchedulerOutput"]


@dataclass
class TCDSchedulerOutput(Output):
    """One step's result: the sample at the next timestep, and that at the cleaner one where the model's jump ended."""

    prev_sample: Tensor
    pred_noised_sample: Tensor | None = None


class TCDScheduler(LCMScheduler, paper="Zheng et al. 2024", draws="optional"):
    """Jump along the ODE to s = (1 - eta) t', then add noise from there to the next timestep t' (Zheng et al. 2024, algorithm 4): for TCD-LoRA and
    Hyper-SD, in 2 to 20 steps. The options are those of LCMScheduler; clipping, thresholding and `timestep_scaling` have no effect."""

    def _origin(self, original_inference_steps: int | None, strength: float) -> tuple[int, np.ndarray]:
        if original_inference_steps is None:
            return super()._origin(None, strength)
        return original_inference_steps, np.arange(int(self.config.num_train_timesteps * strength))  # any timestep will do

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.3,  # type: ignore[override]
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep. `eta`, 0 (deterministic) to 1 (as a consistency model), is the share of the way that noise has; it should grow with
        the number of steps."""
        self._ensure(0 <= eta <= 1, "No share of the way.", "step, eta", eta, "0 to 1")
        t, t_prev, noisy = self._ends(timestep, 0)
        s = int(np.float32(1 - eta) * np.float32(t_prev))
        (alpha, sigma, *_), (alpha_s, sigma_s, bar_s, *_) = self._level(t), self._level(s)
        x0, eps = self.x0_and_eps(sample, model_output, alpha, sigma)
        prev = noised = alpha_s * x0 + sigma_s * eps
        if eta > 0 and noisy:
            noise, share = randn(model_output.shape, generator, model_output.device, noised.dtype), self._level(t_prev)[2] / bar_s
            prev = share.sqrt() * noised + (1 - share).sqrt() * noise
        return self._result(return_dict, prev, noised, TCDSchedulerOutput)
