"""Exponential integrators in log-SNR that reuse earlier predictions."""

from __future__ import annotations
import math
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import LINSPACE, PREDICTIONS, SIGMAS, Device, SigmaScheduler, Stepped, Timestep, options
from .process import sigma_to_t, spaced

__all__ = ["DPMSolverMultistepScheduler"]

# names of other solvers, found in files that several schedulers share
FOREIGN = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}


class DPMSolverMultistepScheduler(SigmaScheduler):
    """DPM-Solver (Lu et al. 2022a), DPM-Solver++ and their SDE forms (Lu et al. 2022b), multistep, of orders 1 to 3.
    `model_outputs` are the last predictions (x0, or eps without ++), oldest first.
    """

    Config = options(
        solver_order=(2, 1, 3), prediction_type=(*PREDICTIONS, "flow_prediction"), thresholding=False, dynamic_thresholding_ratio=0.995,
        sample_max_value=1.0, algorithm_type=("dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"), solver_type=("midpoint", "heun"),
        lower_order_final=True, euler_at_final=False, **SIGMAS, use_lu_lambdas=False, use_flow_sigmas=False, flow_shift=1.0,
        final_sigmas_type=("zero", "sigma_min"), lambda_min_clipped=-math.inf, variance_type=(None, "learned", "learned_range"),
        timestep_spacing=LINSPACE, steps_offset=0, rescale_betas_zero_snr=False, use_dynamic_shifting=False, time_shift_type=("exponential",),
    )  # fmt: skip

    def _assemble(self, config: Any) -> None:
        foreign = {k: FOREIGN[str(config[k])] for k in ("algorithm_type", "solver_type") if str(config[k]) in FOREIGN}
        super()._assemble(config.replace(**foreign) if foreign else config)
        config = self.config
        if config.final_sigmas_type == "zero" and not config.algorithm_type.endswith("++"):
            self._refuse("final_sigmas_type", "zero", f"'sigma_min': {config.algorithm_type} needs eps at the end")
        if config.prediction_type == "flow_prediction" and not config.use_flow_sigmas:
            self._refuse("prediction_type", "flow_prediction", "use_flow_sigmas=True with it")
        if config.use_lu_lambdas and self.sigma_schedule != "karras":
            self.sigma_schedule = "lu"
        self.lambda_t = self.alphas_cumprod.sqrt().log() - (1 - self.alphas_cumprod).sqrt().log()

    def _restart(self) -> None:
        super()._restart()
        self.model_outputs: tuple[Tensor, ...] = ()

    def split(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """For flows, a straight path from data (sigma = 0) to noise (sigma = 1)."""
        return (1 - sigma, sigma) if self.config.use_flow_sigmas else super().split(sigma)

    def _absent(self, timestep: float) -> int:
        return len(self._numbers) - 1

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, mu: float | None = None, timesteps: list[int] | None = None
    ) -> None:
        """Lay out a run of `num_inference_steps`, or at `timesteps`; `mu` is the log of the flow shift of this run."""
        config = self.config
        if mu is not None and not config.use_dynamic_shifting:
            raise self._error("A shift for a scheduler that has none.", "set_timesteps, mu", mu, fix="Set use_dynamic_shifting=True.")
        steps = self._steps(num_inference_steps, timesteps=timesteps)
        self._free_timesteps(timesteps, "use_lu_lambdas", "use_flow_sigmas")
        if timesteps is None:
            chosen, sigmas = self._space(steps, config.flow_shift if mu is None else float(np.exp(mu)))
        else:
            chosen = np.asarray(timesteps).astype(np.int64)
            sigmas = self._sigmas_at(chosen)
        self._lay_out(chosen.astype(np.int64), sigmas, device)
        self.num_inference_steps = len(chosen)

    def _space(self, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas of a run of n steps, without the end."""
        config, table = self.config, self.config.num_train_timesteps
        if self.sigma_schedule is not None:
            sigmas = self._by_schedule(self.sigma_table[-1], self.sigma_table[0], n)
            timesteps = sigma_to_t(sigmas, self.sigma_table)
            whole = self.sigma_schedule in ("karras", "lu") and config.beta_schedule != "squaredcos_cap_v2"
            return timesteps.round() if whole else timesteps, sigmas
        if config.use_flow_sigmas:
            sigmas = 1.0 - np.linspace(1, 1 / table, n + 1)
            sigmas = (shift * sigmas / (1 + (shift - 1) * sigmas))[:0:-1]
            return sigmas * table, sigmas
        # noise beyond the clipped log-SNR is left out
        last = table - int(torch.searchsorted(self.lambda_t.flip(0), config.lambda_min_clipped))
        if config.timestep_spacing == "trailing":
            timesteps = np.arange(last, 0, -table / n).round() - 1
        else:
            timesteps = spaced(config.timestep_spacing, n + 1, last, config.steps_offset)[:-1].round()
        return timesteps, self._sigmas_at(timesteps)

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the solver integrates: x0 for the ++ algorithms, eps for the others."""
        config = self.config
        if config.variance_type is not None and config.prediction_type == "epsilon":
            model_output = model_output[:, : sample.shape[1]]
        alpha, sigma = self.split(self.sigmas[self.step_index])
        x0, eps = self.x0_and_eps(sample, model_output, alpha, sigma)
        if config.algorithm_type.endswith("++"):
            return self.limit(x0)
        return (sample - alpha * self.limit((sample - sigma * eps) / alpha)) / sigma if config.thresholding else eps

    def _order(self, index: int) -> int:
        """The order of the step at this position: what the history allows, and less at the end, where high orders are unstable."""
        config, left = self.config, len(self._numbers) - index
        early = config.lower_order_final and len(self._numbers) < 15
        if left == 1 and (early or config.euler_at_final or config.final_sigmas_type == "zero"):
            return 1
        return min(config.solver_order, len(self.model_outputs), 2 if left == 2 and early else 3)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
        variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next timestep, in float32 inside. `variance_noise` is the noise of the SDE forms, instead of a `generator`."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        self.model_outputs = (*self.model_outputs, output)[-self.config.solver_order :]
        if not self.config.algorithm_type.startswith("sde"):
            variance_noise = None
        elif variance_noise is None:
            variance_noise = randn(output.shape, generator, output.device, torch.float32)
        prev = self._update(index, self._order(index), sample.float(), variance_noise)
        return self._result(return_dict, prev.to(output.dtype))

    def _update(self, index: int, order: int, x: Tensor, noise: Tensor | None) -> Tensor:
        """The exponential integrator of all four algorithms (Lu et al. 2022a and b):
        x' = scale x - gain (phi1 D0 + c1 D1 + c2 D2) + std noise, with phi1 = e^g - 1 and g the step h in log-SNR, signed and
        doubled as the algorithm needs; D0, D1, D2 are the prediction and its divided differences.
        """
        data, stochastic = self.config.algorithm_type.endswith("++"), noise is not None
        alpha, sigma = self.split(self.sigmas[index + 1])
        levels = [self.split(self.sigmas[index - k]) for k in range(order)]
        alpha_s, sigma_s = levels[0]
        logs = [a.log() - s.log() for a, s in levels]  # log-SNR / 2, newest first
        h = alpha.log() - sigma.log() - logs[0]
        if data:
            scale, gain, g = sigma / sigma_s, alpha, -2 * h if stochastic else -h
            scale = scale * torch.exp(-h) if stochastic else scale
        else:
            scale, gain, g = alpha / alpha_s, 2 * sigma if stochastic else sigma, h
        phi = torch.exp(g) - 1
        m = self.model_outputs[::-1]
        prev = scale * x - (gain * phi) * m[0]
        if order == 2:
            slope = 1 / ((logs[0] - logs[1]) / h) * (m[0] - m[1])
            weight = phi / 2 if self.config.solver_type == "midpoint" else phi / g - 1
            prev = prev - (gain * weight) * slope
        elif order == 3:
            r0, r1 = (logs[0] - logs[1]) / h, (logs[1] - logs[2]) / h
            d0, d1 = 1 / r0 * (m[0] - m[1]), 1 / r1 * (m[1] - m[2])
            slope, curve = d0 + r0 / (r0 + r1) * (d0 - d1), 1 / (r0 + r1) * (d0 - d1)
            # the SDE form of ++ has +1/2 where the expansion has -1/2; kept, since results are compared with the reference's
            half = 0.5 if data and stochastic else -0.5
            prev = prev - (gain * (phi / g - 1)) * slope - (gain * ((phi - g) / g**2 + half)) * curve
        if noise is None:
            return prev
        return prev + sigma * torch.sqrt(1 - torch.exp(-2 * h) if data else torch.exp(2 * h) - 1) * noise.to(prev)
