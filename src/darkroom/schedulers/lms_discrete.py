"""A linear multistep method in sigma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .base import BetaConfig, Prediction, Spacing, Stepped, Timestep
from .sigma import ExplodingScheduler

__all__ = ["LMSDiscreteScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class LMSDiscreteConfig(BetaConfig):
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    prediction_type: Prediction = "epsilon"
    timestep_spacing: Spacing = "linspace"
    steps_offset: int = 0


class LMSDiscreteScheduler(ExplodingScheduler):
    """Integrates the polynomial through the last slopes dx/dsigma (`derivatives`, oldest first) exactly (k-diffusion, sample_lms)."""

    Config = LMSDiscreteConfig

    def _restart(self) -> None:
        super()._restart()
        self.derivatives: tuple[Tensor, ...] = ()

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of the slope at position t - `current_order` in the step from position t, of the last `order` slopes.

        It is the integral of a Lagrange polynomial of degree order - 1; Gauss-Legendre quadrature with order / 2 points is exact.
        """
        sigmas = self.sigmas.double().numpy()
        nodes, weights = np.polynomial.legendre.leggauss((order + 1) // 2)
        half = (sigmas[t + 1] - sigmas[t]) / 2
        at = sigmas[t] + half * (nodes + 1)
        own, others = sigmas[t - current_order], [sigmas[t - k] for k in range(order) if k != current_order]
        basis = np.prod([(at - other) / (own - other) for other in others], axis=0)
        return float(half * (weights * basis).sum())

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, order: int = 4, return_dict: bool = True) -> Stepped:
        """x at the next sigma from at most `order` slopes."""
        index = self._position(timestep)
        x0 = self.x0(model_output, sample, self.sigmas[index])
        self.derivatives = (*self.derivatives, (sample - x0) / self.sigmas[index])[-order:]
        # counted from the start of the schedule, also where a run begins in its middle with no slopes yet: as the reference
        order = min(index + 1, order)
        prev = sample + sum(self.get_lms_coefficient(order, index, k) * d for k, d in enumerate(self.derivatives[::-1]) if k < order)
        return self._result(return_dict, prev, x0)
