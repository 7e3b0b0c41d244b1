"""Exponential Adams methods: DEIS, the refined exponential solver, and an SDE whose noise is a choice."""

from collections.abc import Callable, Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWING, FLOWS, LINSPACE, SHIFTING, SIGMAS, THRESHOLDS, Device, Stepped, Timestep, options
from .log_snr import LogSnrScheduler
from .process import X0, weights

__all__ = ["DEISMultistepScheduler", "ERSDEScheduler", "RESMultistepScheduler", "X0MultistepScheduler"]

COMMON = {
    "prediction_type": FLOWS, **THRESHOLDS, "lower_order_final": True, **SIGMAS, **FLOWING, "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_spacing": LINSPACE, "steps_offset": 0, "rescale_betas_zero_snr": False, **SHIFTING, "shift_terminal": None,
}  # fmt: skip


class X0MultistepScheduler(LogSnrScheduler, accuracy="1-3"):
    """A step is a sum of x, the last predictions of x0, and noise, whose weights `_weights` has."""

    data = True
    # (position, order) -> the weights of x, of the noise, and of the last predictions, the newest first
    _weights: Callable[[int, int], tuple[float, float, list[float]]]

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None,
                      mu: float | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or for flows from each of `sigmas` to the next, and from the last to the end; they are shifted too.
        `mu` is the log of the flow shift of this run."""
        mu = self._mu(mu)
        steps = self._steps(num_inference_steps if sigmas is None else None, sigmas=sigmas)
        if sigmas is None:
            timesteps, levels = self._space(steps, mu)
        else:  # log-SNR is infinite at sigma = 1
            self._free_sigmas(sigmas)
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


class RESMultistepScheduler(X0MultistepScheduler, paper="Zhang et al. 2023"):
    """RES, multistep (Zhang et al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling"): the
    polynomial in lambda through the last `solver_order` predictions of x0, weighted exactly by phi functions, so that all order conditions hold. One
    evaluation per step; for 10 to 25 steps, of variance-preserving networks and of flows."""

    Config = options(solver_order=(2, 1, 3), **COMMON)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, in float32 inside."""
        index, output = self._remember(model_output, timestep, sample)
        return self._result(return_dict, self._sum(index, self._order(index), sample).to(output.dtype), output)

    def _weights(self, index: int, order: int) -> tuple[float, float, list[float]]:
        (alpha, sigma), (_, sigma_s) = ((float(a), float(s)) for a, s in (self.splits[index + 1], self.splits[index]))
        lam = self._once("lambdas", self.path.lam.tolist)
        h = lam[index + 1] - lam[index]
        if sigma == 0 or h == 0:
            return (0.0, 0.0, [alpha]) if sigma == 0 else (1.0, 0.0, [])
        found = weights(-h, [(lam[index - k] - lam[index]) / h for k in range(order)])
        return sigma / sigma_s, 0.0, [alpha * h * w for w in found]


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # phi of the noise-to-signal ratio
    "er-sde": lambda x: x * (np.exp(x**0.3) + 10),
    "ode": lambda x: x,
    "sde": lambda x: x**2,
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


class ERSDEScheduler(X0MultistepScheduler, paper="Cui et al. 2023"):
    """ER-SDE-Solver (Cui et al. 2023, algorithms 1 to 3, which are its orders): with r = sigma / alpha and the noise scale phi, x' / alpha' = (phi' /
    phi) x / alpha + weighted predictions of x0 + sqrt(r'^2 - r^2 (phi' / phi)^2) noise. `noise_scale` "er-sde" is phi = r (exp(r^0.3) + 10), which
    puts little noise where it would not be corrected any more, "sde" r^2 and "ode" r, without noise. The derivatives are those of the polynomial in r
    through the last predictions. For 10 to 30 steps, where an SDE is wanted."""

    Config = options(solver_order=(3, 2, 1), noise_scale=("er-sde", "ode", "sde"), **COMMON)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, s_noise: float = 1.0,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep, in float32 inside; `s_noise` is the standard deviation of the noise."""
        index, output = self._remember(model_output, timestep, sample)
        noisy = self.config.noise_scale != "ode"
        noise = s_noise * randn(output.shape, generator, output.device, torch.float32) if noisy else None
        return self._result(return_dict, self._sum(index, self._order(index), sample, noise).to(output.dtype), output)

    def _weights(self, index: int, order: int) -> tuple[float, float, list[float]]:
        alphas, sigmas = self.path.alpha.double().numpy(), self.path.sigma.double().numpy()
        r, alpha = sigmas / alphas, float(alphas[index + 1])
        start, end = r[index], r[index + 1]
        if end == 0 or end == start:
            return (0.0, 0.0, [alpha]) if end == 0 else (1.0, 0.0, [])
        scale = SCALES[self.config.noise_scale]
        ratio = scale(end) / scale(start)
        # Gauss-Legendre in log r, for the integrals over r from end to start of (r - start)^n / phi(r)
        half = np.log(start / end) / 2
        at = end * np.exp(half * (NODES + 1))
        u, mass = (at - start) / (end - start), half * WEIGHTS * at / scale(at)
        moments = [1 - ratio] + [1 + n * scale(end) * (u ** (n - 1) * mass).sum() / (end - start) for n in range(1, order)]
        nodes = (r[index - np.arange(order)] - start) / (end - start)
        found = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
        std = alpha * max(end**2 - (start * ratio) ** 2, 0.0) ** 0.5
        return alpha * ratio / float(alphas[index]), std, (alpha * found).tolist()


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
