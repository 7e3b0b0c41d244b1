"""Solvers of the extended reverse-time SDE, whose noise is a choice."""

from __future__ import annotations
from collections.abc import Callable
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import Stepped, Timestep, options
from .res_multistep import COMMON, X0MultistepScheduler

__all__ = ["ERSDEScheduler"]

SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # phi of the noise-to-signal ratio
    "er-sde": lambda x: x * (np.exp(x**0.3) + 10),
    "ode": lambda x: x,
    "sde": lambda x: x**2,
}
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


class ERSDEScheduler(X0MultistepScheduler):
    """ER-SDE-Solver (Cui et al. 2023, algorithms 1 to 3, which are its orders): with r = sigma / alpha and the noise scale phi,
    x' / alpha' = (phi' / phi) x / alpha + weighted predictions of x0 + sqrt(r'^2 - r^2 (phi' / phi)^2) noise.

    `noise_scale` "er-sde" is phi = r (exp(r^0.3) + 10), which puts little noise where it would not be corrected any more, "sde" r^2 and "ode" r,
    without noise. The derivatives are those of the polynomial in r through the last predictions. For 10 to 30 steps, where an SDE is wanted.
    """

    Config = options(solver_order=(3, 2, 1), noise_scale=("er-sde", "ode", "sde"), **COMMON)
    accuracy = "1-3"
    paper = "Cui et al. 2023"

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, s_noise: float = 1.0,
        return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next timestep, in float32 inside; `s_noise` is the standard deviation of the noise."""
        index, output = self._remember(model_output, timestep, sample)
        noise = None
        if self.config.noise_scale != "ode":
            noise = s_noise * randn(output.shape, generator, output.device, torch.float32)
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
