"""Exponential Adams methods on x0: the refined exponential solver, and an SDE whose noise is a choice."""

from collections.abc import Callable, Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWING, FLOWS, LINSPACE, SHIFTING, SIGMAS, THRESHOLDS, Device, Stepped, Timestep, options
from .log_snr import LogSnrScheduler
from .process import weights

__all__ = ["ERSDEScheduler", "RESMultistepScheduler", "X0MultistepScheduler"]

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


class ERSDEScheduler(X0MultistepScheduler, paper="Cui et al. 2023", draws="optional"):
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
