"""DPM-Solver, singlestep: exponential integrators in log-SNR that begin every few steps anew."""

import math
from typing import Any
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWING, FLOWS, SHIFTING, SIGMAS, THRESHOLDS, Stepped, Timestep, options
from .dpmsolver_multistep import LEARNED, DPMSolver

__all__ = ["DPMSolverSinglestepScheduler"]


class DPMSolverSinglestepScheduler(DPMSolver):
    """DPM-Solver and DPM-Solver++, singlestep (Lu et al. 2022a, algorithms 1 and 2): steps of order 1, 2, ... `solver_order` follow one another, each
    from the sample where the first of them began, `sample`. No prediction outlives its group, which suits guidance that changes during a run; at the
    same number of evaluations the multistep form is usually better. `order_list` has the order of each step: a group that would end at sigma 0 or be
    incomplete is cut short, whatever `lower_order_final` says."""

    Config = options(solver_order=(2, 1, 3), prediction_type=FLOWS, **THRESHOLDS, algorithm_type=("dpmsolver++", "dpmsolver", "sde-dpmsolver++"),
                     solver_type=("midpoint", "heun"), lower_order_final=False, **SIGMAS, **FLOWING, final_sigmas_type=("zero", "sigma_min"),
                     lambda_min_clipped=-math.inf, variance_type=LEARNED, **SHIFTING)  # fmt: skip
    sample: Tensor | None = None
    _history = ("sample",)

    def _install(self, *args: Any) -> None:
        super()._install(*args)
        self.order_list = self.get_order_list(len(self._numbers))

    def get_order_list(self, num_inference_steps: int) -> list[int]:
        """The order of each step of a run: 1, 2, ..., `solver_order`, again and again, and 1 at the end where it must be."""
        most, config = self.config.solver_order, self.config
        orders = [step % most + 1 for step in range(num_inference_steps)]
        if config.final_sigmas_type == "zero" or (config.lower_order_final and num_inference_steps % most == 0):
            orders[-1] = 1
        return orders

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep."""
        index, output = self._remember(model_output, timestep, sample)
        order = min(self.order_list[index], len(self.model_outputs))
        if order == 1:
            self.sample = sample
        noise = randn(output.shape, generator, output.device, output.dtype) if self.stochastic else None
        return self._result(return_dict, self._update(index, order, self.sample, noise))  # type: ignore[arg-type]

    def _weights(self, order: int) -> list[tuple[Tensor, ...]]:
        """The numbers of `_kernel` but h, and the reciprocals and the share of the inner positions."""
        h, *kernel = self._kernel(order, order)
        start, older, newest = (self.path.lam.roll(k)[:-1] for k in (order - 1, 1, 0))
        r0, r1 = (newest - start) / h, (older - start) / h
        return list(zip(*(values.unbind() for values in (*kernel, 1 / r0, 1 / r1, r0, r1, r0 - r1))))

    def _update(self, index: int, order: int, x: Tensor, noise: Tensor | None) -> Tensor:
        """x at the next position from the sample `order` positions before it, and the predictions from there on."""
        scale, c0, c1, c2, std, u0, u1, r0, r1, gap = self._once(("weights", order), lambda: self._weights(order))[index]
        m = self.model_outputs[::-1]
        prev = scale * x - c0 * m[order - 1]
        if order == 2:
            prev = prev - c1 * (u0 * (m[0] - m[1]))
        elif order == 3:
            near, far = u1 * (m[1] - m[2]), u0 * (m[0] - m[2])
            if self.config.solver_type == "midpoint":
                prev = prev - c1 * far
            else:
                prev = prev - c1 * ((r0 * near - r1 * far) / gap) - c2 * (2.0 * (far - near) / gap)
        return prev if noise is None else prev + std * noise
