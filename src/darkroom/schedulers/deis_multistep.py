"""DEIS: exponential Adams methods on eps."""

from typing import Any
import numpy as np
import torch
from torch import Tensor
from .base import FLOWING, FLOWS, LINSPACE, SHIFTING, SIGMAS, THRESHOLDS, Device, Stepped, Timestep, options
from .log_snr import LogSnrScheduler
from .process import X0

__all__ = ["DEISMultistepScheduler"]


class DEISMultistepScheduler(LogSnrScheduler, accuracy="1-3", paper="Zhang & Chen 2023"):
    """Diffusion exponential integrator sampler, log-rho tAB (Zhang & Chen 2023, eq. 14 and table 1): the last predictions of eps, of which a
    polynomial in log rho, rho = sigma / alpha, is integrated exactly. Orders 1 to 3; for 10 to 20 steps without strong guidance. A run ends at the
    smallest sigma of the table: eps is not defined at 0."""

    Config = options(solver_order=(2, 1, 3), prediction_type=FLOWS, **THRESHOLDS, algorithm_type=("deis",), solver_type=("logrho",),
                     lower_order_final=True, **SIGMAS, **FLOWING, timestep_spacing=LINSPACE, steps_offset=0, **SHIFTING)  # fmt: skip
    data = False
    _foreign = {"dpmsolver": "deis", "dpmsolver++": "deis"} | dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho")

    def set_timesteps(self, num_inference_steps: int, device: Device = None, mu: float | None = None) -> None:
        """Lay out a run of `num_inference_steps`; `mu` is the log of the flow shift of this run."""
        self._start(*self._space(self._steps(num_inference_steps), self._mu(mu)), device)

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """eps, of x0 limited as configured."""
        alpha, sigma = self.splits[self.step_index or 0]
        return (sample - alpha * self.limit(X0[self.config.prediction_type](model_output, sample, alpha, sigma))) / sigma

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep."""
        index, eps = self._remember(model_output, timestep, sample)
        order = self._order(index)
        (alpha_s, _), (alpha, sigma) = self.splits[index : index + 2]
        if order == 1:
            h = self.path.lam[index + 1] - self.path.lam[index]
            return self._result(return_dict, (alpha / alpha_s) * sample - (sigma * (torch.exp(h) - 1)) * eps)
        total: Any = sample / alpha_s
        for weight, eps in zip(self._once((index, order), lambda: self._weights(index, order)), reversed(self.model_outputs)):
            total = total + weight * eps
        return self._result(return_dict, alpha * total)

    def _weights(self, index: int, order: int) -> list[Tensor]:
        """Integrals over rho, from this position to the next, of the Lagrange polynomials in log rho of the last `order` positions."""
        rho = self.path.sigma / self.path.alpha
        log_rho = self._once("log rho", lambda: torch.from_numpy(np.log(rho.numpy())))
        ends, t = rho[[index, index + 1]], log_rho[[index, index + 1]]
        found = []
        for own in range(order):  # the others in cyclic order: the sums are float32, whose rounding is part of the result
            b, c, *rest = log_rho[: index + 1].flip(0)[:order].roll(-own).unbind()
            if rest:
                integral = ends * (c * (rest[0] - t + 1) - rest[0] * t + rest[0] + t**2 - 2 * t + 2) / ((b - c) * (b - rest[0]))
            else:
                integral = ends * (-c + t - 1) / (b - c)
            found.append(integral[1] - integral[0])
        return found
