"""A linear multistep method in sigma."""

import numpy as np
from torch import Tensor
from .base import FLOWS, LINSPACE, SIGMAS, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler

__all__ = ["LMSDiscreteScheduler"]


class LMSDiscreteScheduler(ExplodingScheduler, accuracy="4", paper="Karras et al. 2022; k-diffusion"):
    """Integrates the polynomial through the last slopes dx/dsigma (`derivatives`, oldest first) exactly (k-diffusion, sample_lms): Adams and
    Bashforth's method on uneven steps. One evaluation per step and high order, but little damping: best above 20 steps."""

    Config = options(**SIGMAS, prediction_type=FLOWS, timestep_spacing=LINSPACE, steps_offset=0)
    derivatives: tuple[Tensor, ...] = ()
    _history = ("derivatives",)

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of the slope at position t - `current_order` in the step from position t, of the last `order` slopes: the integral of a Lagrange
        polynomial of degree order - 1. Gauss-Legendre quadrature with order / 2 points is exact."""
        sigmas = self.levels
        nodes, weights = np.polynomial.legendre.leggauss((order + 1) // 2)
        half = (sigmas[t + 1] - sigmas[t]) / 2
        at = sigmas[t] + half * (nodes + 1)
        own, others = sigmas[t - current_order], [sigmas[t - k] for k in range(order) if k != current_order]
        basis = np.prod([(at - other) / (own - other) for other in others], axis=0)
        return float(half * (weights * basis).sum())

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, order: int = 4, return_dict: bool = True) -> Stepped:
        """x at the next sigma from at most `order` slopes."""
        index = self._position(timestep)
        sigma = self.marks[index]
        x0 = self.x0(model_output, sample, sigma)
        self.derivatives = (*self.derivatives, (sample - x0) / sigma)[-order:]
        # counted from the start of the schedule, also where a run begins in its middle with no slopes yet: as the reference
        order = min(index + 1, order)
        prev = sample + sum(self.get_lms_coefficient(order, index, k) * d for k, d in enumerate(self.derivatives[::-1]) if k < order)
        return self._result(return_dict, prev, x0)
