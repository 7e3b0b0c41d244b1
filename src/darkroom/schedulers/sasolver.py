"""A stochastic Adams predictor and corrector."""

from __future__ import annotations
import math
from collections.abc import Callable
from itertools import combinations
from typing import Any
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWS, LINSPACE, SIGMAS, Device, KarrasScheduler, Stepped, Timestep, options
from .log_snr import LogSnrScheduler

__all__ = ["SASolverScheduler"]


def middle(t: float) -> int:
    """Noise in the middle of the run: tau = 1 between timesteps 200 and 800, else 0."""
    return int(200 <= t <= 800)


class SASolverScheduler(LogSnrScheduler):
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams-Bashforth steps, each corrected by Adams-Moulton once its end is predicted.
    `tau_func` gives the strength of the noise at a timestep, 0 for the ODE and 1 for the reversed SDE; `predictor_order` is 1 to 4 and
    `corrector_order` too. `algorithm_type` says what is integrated. For 20 steps and more, where noise improves on ODE solvers.
    """

    Config = options(
        predictor_order=(2, 1, 3, 4), corrector_order=(2, 1, 3, 4), prediction_type=FLOWS, tau_func=Callable, thresholding=False,
        dynamic_thresholding_ratio=0.995, sample_max_value=1.0, algorithm_type=("data_prediction", "noise_prediction"),
        lower_order_final=True, **SIGMAS, use_flow_sigmas=False, flow_shift=1.0, lambda_min_clipped=-math.inf,
        variance_type=(None, "learned", "learned_range"), timestep_spacing=LINSPACE, steps_offset=0,
    )  # fmt: skip
    accuracy = "1-4"
    paper = "Xue et al. 2023"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.data = self.config.algorithm_type == "data_prediction"
        self.tau_func: Callable[[float], float] = self.config.tau_func or middle

    def _restart(self) -> None:
        super()._restart()
        self.last: tuple[Tensor, Tensor, float, int] | None = None  # the sample before the step, its noise, tau, and the corrector's order

    def _kept(self) -> int:
        return max(self.config.predictor_order, self.config.corrector_order - 1)

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the training's table, whatever the run: the one solver of its kind in the reference that does so."""
        return super().signal_and_noise(timesteps, like) if self.flow else KarrasScheduler.signal_and_noise(self, timesteps, like)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`."""
        self._start(*self._space(self._steps(num_inference_steps)), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next timestep, from the sample after its correction."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        if index > 0 and self.last is not None:
            start, noise, tau, order = self.last
            sample = self._update(index - 1, (*self.model_outputs, output), index, order, start, noise, tau)
        self.model_outputs = (*self.model_outputs, output)[-self._kept() :]
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        left, made = len(self._numbers) - index if self.config.lower_order_final else 4, len(self.model_outputs)
        tau = self.tau_func(self.number(timestep))
        self.last = sample, noise, tau, min(self.config.corrector_order, left + 1, made + 1)
        prev = self._update(index, self.model_outputs, index, min(self.config.predictor_order, left, made), sample, noise, tau)
        return self._result(return_dict, prev)

    def _update(
        self, index: int, outputs: tuple[Tensor, ...], newest: int, order: int, x: Tensor, noise: Tensor, tau: float
    ) -> Tensor:  # fmt: skip
        """x at the next position from x at this one and the last `order` outputs, the newest of which was made at position `newest`
        (Xue et al. 2023, eq. 14 and 17).
        """
        (alpha_s, sigma_s), (alpha, sigma) = self.splits[index : index + 2]
        start, end = self.path.lam[index : index + 2].unbind()
        h, strength = end - start, 1 + tau**2
        # the sums are float32, whose rounding is part of the result
        found = self._integrals(start, end, self.path.lam[: newest + 1].flip(0)[:order].unbind(), strength if self.data else -1.0)
        total: Any = torch.zeros_like(x)
        if self.data:
            if order == 2:  # the authors' smaller error for small h, in place of the exact integral
                half = (h * strength - 1 + torch.exp(strength * -h)) / strength**2
                if newest == index:
                    better = torch.exp(strength * end) * (h**2 / 2 - half) / (start - self.path.lam[index - 1])
                else:
                    better = torch.exp(strength * end) * (h / 2 - (h * strength - 1 + torch.exp(strength * -h)) / (strength**2 * h))
                found = [found[0] + better, found[1] - better]
            gain, scale = strength * sigma * torch.exp(-(tau**2) * end), torch.exp(-(tau**2) * h) * (sigma / sigma_s)
            std = sigma * torch.sqrt(1 - torch.exp(-2 * tau**2 * h))
        else:
            gain, scale, std = -strength * alpha, alpha / alpha_s, tau * sigma * torch.sqrt(torch.exp(2 * h) - 1)
        for weight, output in zip(found, reversed(outputs)):
            total = total + gain * weight * output
        return (scale * x + total + std * noise).to(x.dtype)

    def _integrals(self, start: Tensor, end: Tensor, nodes: tuple[Tensor, ...], rate: float) -> list[Tensor]:
        """Integrals over lambda, from start to end, of e^{rate lambda} times the Lagrange polynomials of the nodes."""
        a, b, order = rate * start, rate * end, len(nodes)
        powers = []  # of lambda^k: by parts
        for k in range(order):
            upper, lower = (sum((-1) ** j * math.perm(k, j) * ends ** (k - j) for j in range(k + 1)) for ends in (b, a))
            powers.append(torch.exp(b) * (upper - lower * torch.exp(-(b - a))) / rate ** (k + 1))
        found = []
        for own in range(order):
            others = [*nodes[:own], *nodes[own + 1 :]]
            divisor: Any = math.prod(nodes[own] - other for other in others)
            symmetric = (sum(math.prod(-other for other in chosen) for chosen in combinations(others, k)) for k in range(order))
            found.append(sum(c / divisor * power for c, power in zip(symmetric, reversed(powers))))
        return found
