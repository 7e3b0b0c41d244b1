"""DPM-Solver, multistep: exponential integrators in log-SNR that reuse earlier predictions, forwards and backwards."""

import math
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import FLOWING, FLOWS, LINSPACE, SHIFTING, SIGMAS, THRESHOLDS, Device, Stepped, Timestep, options
from .log_snr import LogSnrScheduler

__all__ = ["DPMSolver", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler"]

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++")
LEARNED = (None, "learned", "learned_range")


class DPMSolver(LogSnrScheduler, accuracy="1-3", paper="Lu et al. 2022", draws="optional"):
    """The four algorithms of DPM-Solver: of x0 (++) or of eps, for the ODE or for an SDE."""

    _foreign = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        kind = self.config.algorithm_type
        self.data, self.stochastic = kind.endswith("++"), kind.startswith("sde")
        if not self.data and self._option("final_sigmas_type") == "zero":
            self._refuse("final_sigmas_type", "zero", f"'sigma_min': {kind} needs eps at the end")

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, mu: float | None = None,
                      timesteps: list[int] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or at `timesteps`; `mu` is the log of the flow shift of this run."""
        steps, mu = self._steps(num_inference_steps, timesteps=timesteps), self._mu(mu)
        self._free_timesteps(timesteps, "use_lu_lambdas")
        if timesteps is None:
            return self._start(*self._space(steps, mu), device)
        chosen = np.asarray(timesteps).astype(np.int64)
        return self._start(chosen, self._sigmas_at(chosen), device)

    def _end(self, sigmas: np.ndarray) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else self.sigma_table[0]

    def _kernel(self, span: int, order: int) -> tuple[Tensor, ...]:
        """What a step over `span` positions takes, ending at each position but the first (where it would begin before the run, nonsense): the step h
        in lambda; the factors of x, of the prediction, of its first and second derivative over h; the noise's deviation. x' = scale x - gain (phi1 D0
        + c1 D1 + c2 D2) + std noise (Lu et al. 2022a, eq. B.1 and 2022b, app. B), with phi1 = e^g - 1 and g the step h, signed and doubled as the
        algorithm needs."""
        alpha, sigma, lam = (values[1:] for values in self.path)
        alpha_s, sigma_s, lam_s = (values.roll(span - 1)[:-1] for values in self.path)
        h = lam - lam_s
        if self.data:
            scale, gain, g = sigma / sigma_s, alpha, -2 * h if self.stochastic else -h
            scale = scale * torch.exp(-h) if self.stochastic else scale
        else:
            scale, gain, g = alpha / alpha_s, 2 * sigma if self.stochastic else sigma, h
        phi = torch.exp(g) - 1
        first = phi / 2 if order == 2 and self.config.solver_type == "midpoint" else phi / g - 1
        # the SDE form of ++ has +1/2 where the expansion has -1/2, and all forms lack a factor of 2: as in the authors' code
        second = (phi - g) / g**2 + (0.5 if self.data and self.stochastic else -0.5)
        std = sigma * torch.sqrt(1 - torch.exp(-2 * h) if self.data else torch.exp(2 * h) - 1)
        return h, scale, gain * phi, gain * first, gain * second, std


class DPMSolverMultistepScheduler(DPMSolver):
    """DPM-Solver (Lu et al. 2022a), DPM-Solver++ and their SDE forms (Lu et al. 2022b), multistep, of orders 1 to 3: the usual choice for 15 to 25
    steps, with order 2 under guidance and 3 without. `use_karras_sigmas` often helps below 20 steps, and `euler_at_final` an SDE form.
    `algorithm_type` names the form, `solver_type` the second-order weights, `lambda_min_clipped` leaves out noise beyond that log-SNR."""

    Config = options(solver_order=(2, 1, 3), prediction_type=FLOWS, **THRESHOLDS, algorithm_type=ALGORITHMS, solver_type=("midpoint", "heun"),
                     lower_order_final=True, euler_at_final=False, **SIGMAS, use_lu_lambdas=False, **FLOWING, final_sigmas_type=("zero", "sigma_min"),
                     lambda_min_clipped=-math.inf, variance_type=LEARNED, timestep_spacing=LINSPACE, steps_offset=0, rescale_betas_zero_snr=False,
                     **SHIFTING)  # fmt: skip
    _wide: ClassVar[bool] = True  # whether steps are float32 inside

    def _whole(self) -> bool:
        return self.sigma_schedule in ("karras", "lu") and self.config.beta_schedule != "squaredcos_cap_v2"

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, variance_noise: Tensor | None = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep, in float32 inside but for the inverse. `variance_noise` is the noise of the SDE forms, not a `generator`'s."""
        index, output = self._remember(model_output, timestep, sample)
        if self.stochastic and variance_noise is None:
            variance_noise = randn(output.shape, generator, output.device, torch.float32 if self._wide else output.dtype)
        x, noise = sample.float() if self._wide else sample, variance_noise if self.stochastic else None
        prev = self._update(index, self._order(index), x, noise)
        return self._result(return_dict, prev.to(output.dtype) if self._wide else prev)

    def _weights(self, order: int) -> list[tuple[Tensor, ...]]:
        """The numbers of `_kernel` but h, then those of the divided differences, for every step of the run."""
        h, *kernel = self._kernel(1, order)
        newest, older, oldest = (self.path.lam.roll(k)[:-1] for k in range(3))
        r0, r1 = (newest - older) / h, (older - oldest) / h
        return list(zip(*(values.unbind() for values in (*kernel, 1 / r0, 1 / r1, r0 / (r0 + r1), 1 / (r0 + r1)))))

    def _update(self, index: int, order: int, x: Tensor, noise: Tensor | None) -> Tensor:
        """x at the next position by the polynomial through the last `order` predictions, in divided differences."""
        scale, c0, c1, c2, std, u0, u1, mix, u2 = self._once(("weights", order), lambda: self._weights(order))[index]
        m = self.model_outputs[::-1]
        prev = scale * x - c0 * m[0]
        if order == 2:
            prev = prev - c1 * (u0 * (m[0] - m[1]))
        elif order == 3:
            d0, d1 = u0 * (m[0] - m[1]), u1 * (m[1] - m[2])
            prev = prev - c1 * (d0 + mix * (d0 - d1)) - c2 * (u2 * (d0 - d1))
        return prev if noise is None else prev + std * noise.to(prev)


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler, kind="inversion"):
    """DPM-Solver run backwards, which finds the noise of a given picture (edits by inversion; Lu et al. 2022, with ascending `timesteps`), in the
    dtype of the sample. The options are those of the forward solver, whose SDE forms have no inverse. A flow's run does not ascend, as in the
    reference: it has none either."""

    Config = options(solver_order=(2, 1, 3), prediction_type=FLOWS, **THRESHOLDS, algorithm_type=ALGORITHMS, solver_type=("midpoint", "heun"),
                     lower_order_final=True, euler_at_final=False, **SIGMAS, **FLOWING, lambda_min_clipped=-math.inf, variance_type=LEARNED,
                     timestep_spacing=LINSPACE, steps_offset=0)  # fmt: skip
    _wide = False

    def _assemble(self, config: Config) -> None:  # type: ignore[valid-type]
        super()._assemble(config)
        if self.stochastic and not self.flow:
            self._refuse("algorithm_type", self.config.algorithm_type, "one without 'sde': backwards, the variance of its noise is below 0")
        self._lay_out(self._timesteps.numpy()[::-1].copy(), self.sigmas.numpy()[-2::-1], None, end=self.levels[0])

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:  # type: ignore[override]
        """Lay out a run of `num_inference_steps`, from the data on."""
        steps = self._steps(num_inference_steps)
        self.noisiest_timestep = self._last() - 1
        if self.flow or self.sigma_schedule is not None:
            timesteps, sigmas = self._space(steps) if self.flow else self._scheduled(self.sigma_table[0], self.sigma_table[-1], steps)
            timesteps, end = timesteps.round() if self.sigma_schedule == "karras" and not self.flow else timesteps, sigmas[-1]
        else:
            timesteps = self._evenly(steps, left_out=0)[::-1]
            sigmas, end = self._sigmas_at(timesteps), self.sigma_table[self.noisiest_timestep]
        first = np.sort(np.unique(timesteps, return_index=True)[1])
        self._lay_out(timesteps[first].astype(np.int64), sigmas, device, end)
        self.num_inference_steps = len(first)
