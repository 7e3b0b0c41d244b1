"""The refined exponential solver: exponential Adams steps of x0 in log-SNR."""

from __future__ import annotations
from collections.abc import Callable, Sequence
from typing import Any
import numpy as np
from torch import Tensor
from .base import FLOWS, LINSPACE, SIGMAS, Device, Stepped, Timestep, options
from .log_snr import LogSnrScheduler
from .process import weights

__all__ = ["RESMultistepScheduler", "X0MultistepScheduler"]

COMMON = {
    "prediction_type": FLOWS, "thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "lower_order_final": True,
    **SIGMAS, "use_flow_sigmas": False, "flow_shift": 1.0, "final_sigmas_type": ("zero", "sigma_min"), "timestep_spacing": LINSPACE,
    "steps_offset": 0, "rescale_betas_zero_snr": False, "use_dynamic_shifting": False, "time_shift_type": ("exponential", "linear"),
    "shift_terminal": None,
}  # fmt: skip


class X0MultistepScheduler(LogSnrScheduler):
    """A step is a sum of x, the last predictions of x0, and noise, whose weights `_weights` has."""

    data = True
    # (position, order) -> the weights of x, of the noise, and of the last predictions, the newest first
    _weights: Callable[[int, int], tuple[float, float, list[float]]]

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None, mu: float | None = None
    ) -> None:
        """Lay out a run of `num_inference_steps`, or for flows from each of `sigmas` to the next, and from the last to the end; they are shifted
        too. `mu` is the log of the flow shift of this run.
        """
        mu = self._mu(mu)
        steps = self._steps(num_inference_steps if sigmas is None else None, sigmas=sigmas)
        if sigmas is None:
            timesteps, levels = self._space(steps, mu)
        elif not self.flow or self.sigma_schedule is not None:
            raise self._error(
                "Sigmas for a scheduler that has its own.", "set_timesteps, sigmas", len(sigmas), fix="Set use_flow_sigmas=True."
            )
        else:  # log-SNR is infinite at sigma = 1
            levels = self._shifted(np.minimum(np.asarray(sigmas, dtype=np.float64), 1 - 1e-6), mu)
            timesteps = levels * self.config.num_train_timesteps
        self._lay_out(timesteps.astype(np.float32 if self.flow else np.int64), levels, device, self._end(levels))
        self.num_inference_steps = steps

    def _sum(self, index: int, order: int, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x at the next position, in float32."""
        keep, std, found = self._once((index, order), lambda: self._weights(index, order))
        total: Any = keep * x.float()
        for weight, x0 in zip(found, reversed(self.model_outputs)):
            total = total + weight * x0.float()
        return total if noise is None or std == 0 else total + std * noise


class RESMultistepScheduler(X0MultistepScheduler):
    """RES, multistep (Zhang et al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling"): the
    polynomial in lambda through the last `solver_order` predictions of x0, weighted exactly by phi functions, so that all order conditions hold.
    One evaluation per step; for 10 to 25 steps, of variance-preserving networks and of flows.
    """

    Config = options(solver_order=(2, 1, 3), **COMMON)
    accuracy = "1-3"
    paper = "Zhang et al. 2023"

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, in float32 inside."""
        index, output = self._remember(model_output, timestep, sample)
        return self._result(return_dict, self._sum(index, self._order(index), sample).to(output.dtype), output)

    def _weights(self, index: int, order: int) -> tuple[float, float, list[float]]:
        (alpha, sigma), (_, sigma_s) = ((float(a), float(s)) for a, s in (self.splits[index + 1], self.splits[index]))
        lam = self._lambdas()
        h = lam[index + 1] - lam[index]
        if sigma == 0 or h == 0:
            return (0.0, 0.0, [alpha]) if sigma == 0 else (1.0, 0.0, [])
        found = weights(-h, [(lam[index - k] - lam[index]) / h for k in range(order)])
        return sigma / sigma_s, 0.0, [alpha * h * w for w in found]
