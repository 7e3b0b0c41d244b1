"""Predictors and correctors that share their predictions: UniPC, and the stochastic Adams method."""

import math
from collections.abc import Callable
from copy import copy
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWING, FLOWS, LINSPACE, SHIFTING, SIGMAS, THRESHOLDS, Device, KarrasScheduler, Scheduler, Stepped, Timestep, options
from .log_snr import LogSnrScheduler

__all__ = ["SASolverScheduler", "UniPCMultistepScheduler"]

FOREIGN = dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")


class Nowhere(list):  # type: ignore[type-arg]
    """A list as a default."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class UniPCMultistepScheduler(LogSnrScheduler, accuracy="2-4", paper="Zhao et al. 2023"):
    """UniPC (Zhao et al. 2023, algorithms 1 and 2): each prediction first corrects the sample that it was made for (UniC), then all of them lead to
    the next (UniP), so the order is one higher at no further evaluations. The usual choice below 15 steps. `solver_order` is p of UniP, 2 under
    guidance and 3 without. `solver_type` is B(h): "bh1", h, for few steps without guidance, or "bh2", e^h - 1. `disable_corrector` lists steps after
    which nothing is corrected, for strong guidance, and `solver_p` is another scheduler to predict with. `predict_x0` integrates x0, else eps."""

    Config = options(solver_order=2, prediction_type=FLOWS, **THRESHOLDS, predict_x0=True, solver_type=("bh2", "bh1"), lower_order_final=True,
                     disable_corrector=Nowhere(), solver_p=(Scheduler | None, None), **SIGMAS, **FLOWING, timestep_spacing=LINSPACE, steps_offset=0,
                     final_sigmas_type=("zero", "sigma_min"), rescale_betas_zero_snr=False, **SHIFTING, sigma_min=None, sigma_max=None,
                     shift_terminal=None)  # fmt: skip
    last_sample: Tensor | None = None
    this_order = 0
    _history = ("last_sample", "this_order")
    _foreign = FOREIGN
    _limits_eps = False

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self.config.solver_order < 1:
            self._refuse("solver_order", self.config.solver_order, "at least 1")
        self.data = self.config.predict_x0

    def _restart(self) -> None:
        super()._restart()
        self.solver_p = copy(self.config.solver_p)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: list[float] | None = None,
                      mu: float | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or for flows through `sigmas`, which are shifted too; `mu` is the log of the flow shift, needed
        with dynamic shifting."""
        if not self.config.use_dynamic_shifting:
            mu = None
        elif mu is None:
            raise self._error("The shift of this run is missing.", "set_timesteps, mu", None, "a number", "Pass mu.")
        if sigmas is None:
            timesteps, levels = self._space(steps := self._steps(num_inference_steps, sigmas=None), mu)
        else:
            self._free_sigmas(sigmas)
            steps = self._steps(None, sigmas=sigmas)
            levels = self._bounded(self._shifted(np.asarray(sigmas, dtype=np.float64), mu))
            timesteps = levels * self.config.num_train_timesteps
        self._start(timesteps, levels, device)
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps, device=device)

    def _flow_sigmas(self, n: int, mu: float | None) -> np.ndarray:
        return self._bounded(self._shifted(np.linspace(1, 1 / self.config.num_train_timesteps, n + 1)[:-1], mu))

    def _bounded(self, sigmas: np.ndarray) -> np.ndarray:
        """Away from sigma = 1, where log-SNR is infinite."""
        return np.append(sigmas[0] - 1e-6, sigmas[1:]) if abs(sigmas[0] - 1) < 1e-6 else sigmas

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, from the sample after its correction."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        if index > 0 and self.last_sample is not None and index - 1 not in self.config.disable_corrector:
            sample = self._update(index - 1, self.this_order, self.last_sample, output)
        self.model_outputs = (*self.model_outputs, output)[-self.config.solver_order :]
        left = len(self._numbers) - index
        most = left if self.config.lower_order_final or (self.levels[index + 1] == 0 and left == 1) else self.config.solver_order
        self.this_order, self.last_sample = min(self.config.solver_order, most, len(self.model_outputs)), sample
        if self.solver_p is not None:
            self.solver_p = copy(self.solver_p)  # so that a copy of this scheduler keeps its own
            prev: Any = self.solver_p.step(model_output, timestep, sample)[0]
        else:
            prev = self._update(index, self.this_order, sample, None)
        return self._result(return_dict, prev)

    def _update(self, index: int, order: int, x: Tensor, new: Tensor | None) -> Tensor:
        """x at the next position from x at this one; with a `new` prediction there, it is the correction (Zhao et al. 2023, eq. 3 and 9)."""
        scale, gain, gain_b, ratios, rhos = self._once((index, order, new is None), lambda: self._weights(index, order, new is None))
        newest, *before = reversed(self.model_outputs)
        prev = scale * x - gain * newest
        rhos, parts = rhos.to(x.dtype).unbind(), [(m - newest) / ratio for m, ratio in zip(before, ratios)]
        if len(parts) > 1:  # rounded once in half precision
            wide = torch.promote_types(x.dtype, torch.float32)
            parts = [sum(part.to(wide) * rho for rho, part in zip(rhos, parts)).to(x.dtype)]
        else:
            parts = [rho * part for rho, part in zip(rhos, parts)]
        if new is not None:
            parts.append(rhos[-1] * (new - newest))
        return (prev - gain_b * reduce(add, parts) if parts else prev).to(x.dtype)  # there are none to sigma = 0, where h is infinite

    def _weights(self, index: int, order: int, predicts: bool) -> tuple[Any, ...]:
        """The factor of x, those of the newest prediction and of the differences, the positions of the others in steps, and their weights."""
        (alpha_s, sigma_s), (alpha, sigma) = self.splits[index : index + 2]
        scale, gain = (sigma / sigma_s, alpha) if self.data else (alpha / alpha_s, sigma)
        now, *before = self.path.lam[: index + 1].flip(0)[:order].unbind()
        h = self.path.lam[index + 1] - now
        ratios = [(lam - now) / h for lam in before]
        g = -h if self.data else h
        phi = g.expm1()
        b = g if self.config.solver_type == "bh1" else phi
        count = order - 1 if predicts else order
        if order == (2 if predicts else 1) or count == 0 or h == 0:
            rhos = torch.full((max(count, 1),), 0.5)  # the authors' shorter form, where B(h) matters
        else:  # in float32: rounding is part of the result
            rest, factorial, sides = phi / g - 1, 1, []
            for k in range(2, count + 2):
                sides.append(rest * factorial / b)
                factorial *= k
                rest = rest / g - 1 / factorial
            nodes = torch.stack([*ratios, *[torch.ones(())] * (not predicts)])
            rhos = torch.linalg.solve(torch.stack([nodes**k for k in range(count)]), torch.stack(sides))
        return scale, gain * phi, gain * b, ratios, rhos


def middle(t: float) -> int:
    """Noise in the middle of the run: tau = 1 between timesteps 200 and 800, else 0."""
    return int(200 <= t <= 800)


class SASolverScheduler(LogSnrScheduler, accuracy="1-4", paper="Xue et al. 2023", draws="optional"):
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams-Bashforth steps, each corrected by Adams-Moulton once its end is predicted.
    `tau_func` gives the strength of the noise at a timestep, 0 for the ODE and 1 for the reversed SDE (default: `middle`); `predictor_order` and
    `corrector_order` are 1 to 4. `algorithm_type` says what is integrated. For 20 steps and more, where noise improves on ODE solvers."""

    Config = options(predictor_order=(2, 1, 3, 4), corrector_order=(2, 1, 3, 4), prediction_type=FLOWS, tau_func=(Callable | None, None),
                     **THRESHOLDS, algorithm_type=("data_prediction", "noise_prediction"), lower_order_final=True, **SIGMAS, **FLOWING,
                     lambda_min_clipped=-math.inf, variance_type=(None, "learned", "learned_range"), timestep_spacing=LINSPACE,
                     steps_offset=0)  # fmt: skip
    last: tuple[Tensor, Tensor, float, int] | None = None  # the sample before the step, its noise, tau, and the corrector's order
    _history = ("last",)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.data = self.config.algorithm_type == "data_prediction"
        self.tau_func: Callable[[float], float] = self.config.tau_func or middle

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the training's table, whatever the run: the one solver of its kind in the reference that does so."""
        return super().signal_and_noise(timesteps, like) if self.flow else KarrasScheduler.signal_and_noise(self, timesteps, like)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`."""
        self._start(*self._space(self._steps(num_inference_steps)), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep, from the sample after its correction."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        if index > 0 and self.last is not None:
            start, noise, tau, order = self.last
            sample = self._update(index - 1, (*self.model_outputs, output), index, order, start, noise, tau)
        self.model_outputs = (*self.model_outputs, output)[-max(self.config.predictor_order, self.config.corrector_order - 1) :]
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        left, made = len(self._numbers) - index if self.config.lower_order_final else 4, len(self.model_outputs)
        tau = self.tau_func(self.number(timestep))
        self.last = sample, noise, tau, min(self.config.corrector_order, left + 1, made + 1)
        prev = self._update(index, self.model_outputs, index, min(self.config.predictor_order, left, made), sample, noise, tau)
        return self._result(return_dict, prev)

    def _update(self, index: int, outputs: tuple[Tensor, ...], newest: int, order: int, x: Tensor, noise: Tensor, tau: float) -> Tensor:
        """x at the next position from x at this one and the last `order` outputs, the newest of which was made at position `newest` (Xue et al. 2023,
        eq. 14 and 17)."""
        (alpha_s, sigma_s), (alpha, sigma) = self.splits[index : index + 2]
        start, end = self.path.lam[index : index + 2].unbind()
        h, strength = end - start, 1 + tau**2
        # the sums are float32, whose rounding is part of the result
        found = self._integrals(start, end, self.path.lam[: newest + 1].flip(0)[:order].unbind(), strength if self.data else -1.0)
        total: Any = torch.zeros_like(x)
        if self.data:
            if order == 2:  # the authors' smaller error for small h, in place of the exact integral
                rest = h * strength - 1 + torch.exp(strength * -h)
                if newest == index:
                    better = torch.exp(strength * end) * (h**2 / 2 - rest / strength**2) / (start - self.path.lam[index - 1])
                else:
                    better = torch.exp(strength * end) * (h / 2 - rest / (strength**2 * h))
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
