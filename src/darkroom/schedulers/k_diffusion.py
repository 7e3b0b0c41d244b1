"""The samplers of k-diffusion, which step in sigma: Euler, Euler with fresh noise, Heun and linear multistep (Karras et al. 2022)."""

from __future__ import annotations
from typing import Any
import numpy as np
from torch import Tensor
from ..core.random import Generators, randn
from . import process
from .base import LINSPACE, PREDICTIONS, SIGMAS, Device, SigmaScheduler, Stepped, Timestep, options

__all__ = ["EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"]


class ExplodingScheduler(SigmaScheduler):
    """The sample is x0 + sigma eps, and the network sees it divided by sqrt(sigma^2 + 1) (Karras et al. 2022, table 1, VP)."""

    @property
    def init_noise_sigma(self) -> Tensor:  # type: ignore[override]
        top = self.sigmas.max()
        return top if self.config.timestep_spacing in ("linspace", "trailing") else (top**2 + 1) ** 0.5

    def _space(self, steps: int, timesteps: Any = None, table: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas of a run, (steps,) each: by the options, over another size of the table, or at the given timesteps."""
        config = self.config
        if timesteps is None:
            timesteps = process.spaced(config.timestep_spacing, steps, table or config.num_train_timesteps, config.steps_offset)
        timesteps = np.asarray(timesteps, dtype=np.float32)
        sigmas = self._sigmas_at(timesteps)
        if self._option("interpolation_type") == "log_linear":
            sigmas = process.SIGMA_SCHEDULES["exponential"](self.sigma_table[-1], self.sigma_table[0], steps + 1)
        if self.sigma_schedule is not None:
            sigmas = self._by_schedule(sigmas[0], sigmas[-1], steps)
            timesteps = process.sigma_to_t(sigmas, self.sigma_table).astype(np.float32)
        return timesteps, sigmas

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._lay_out(*self._space(self.num_inference_steps), device)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """x / sqrt(sigma^2 + 1), of unit variance. The first call of a run finds its position by `timestep`."""
        return sample / (self.sigmas[self._position(timestep)] ** 2 + 1) ** 0.5  # type: ignore[arg-type]

    def x0(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 from the network's output for the (unscaled) sample x, limited as the configuration says."""
        return self.limit(process.EXPLODING[self.config.prediction_type](out, x, sigma))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        return original_samples + noise * self._levels(timesteps, original_samples)

    def _ends(self, timestep: Timestep) -> tuple[Tensor, Tensor]:
        """The sigmas that a step goes from and to. Raises InputError for a whole number, nearly always a position taken for a timestep."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            expected = "an item of timesteps, which are floats"
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, expected)
        index = self._position(timestep)
        return self.sigmas[index], self.sigmas[index + 1]


class EulerDiscreteScheduler(ExplodingScheduler):
    """Euler steps along dx/dsigma, with optional churn (Karras et al. 2022, algorithm 2 without its correction)."""

    Config = options(
        prediction_type=("epsilon", "sample", "original_sample", "v_prediction"), interpolation_type=("linear", "log_linear"),
        **SIGMAS, sigma_min=None, sigma_max=None, timestep_spacing=LINSPACE, timestep_type=("discrete", "continuous"), steps_offset=0,
        rescale_betas_zero_snr=False, final_sigmas_type=("zero", "sigma_min"),
    )  # fmt: skip

    @property
    def _log_sigma_time(self) -> bool:
        """Whether the network takes c_noise = log(sigma) / 4 for its timestep (Karras et al. 2022, table 1)."""
        return self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"

    def _lay_out(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device, end: float | None = None) -> None:
        if self._log_sigma_time:
            timesteps = 0.25 * np.log(sigmas[: len(timesteps)].astype(np.float32))
        super()._lay_out(timesteps, sigmas, device, end)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run: of `num_inference_steps`, at `timesteps`, or through `sigmas` (one more than steps, the last is the end)."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps, sigmas=sigmas)
        if sigmas is not None:
            self.num_inference_steps = steps - 1
            levels = np.asarray(sigmas, dtype=np.float32)
            chosen = process.sigma_to_t(levels[:-1], self.sigma_table).astype(np.float32)
            return self._lay_out(chosen, levels[:-1], device, end=levels[-1])
        self._free_timesteps(timesteps, *["timestep_type"] * self._log_sigma_time)
        return self._lay_out(*self._space(steps, timesteps), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `s_churn` is noise, of standard deviation `s_noise`, added and removed again over the whole run
        between the sigmas `s_tmin` and `s_tmax`.
        """
        sigma, sigma_next, x = *self._ends(timestep), sample.float()
        gamma = min(s_churn / (len(self.sigmas) - 1), 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        raised = sigma * (gamma + 1)
        if gamma > 0:
            x = x + randn(model_output.shape, generator, model_output.device, model_output.dtype) * s_noise * (raised**2 - sigma**2) ** 0.5
        # the network saw the sample at sigma; with epsilon the churned sample is taken to be at the raised level
        x0 = self.x0(model_output, x, raised if self.config.prediction_type == "epsilon" else sigma)
        prev = x + (x - x0) / raised * (sigma_next - raised)
        return self._result(return_dict, prev.to(model_output.dtype), x0)


class EulerAncestralDiscreteScheduler(ExplodingScheduler):
    """Step below the next sigma, then add noise up to it: ancestral sampling by Euler steps (k-diffusion, sample_euler_ancestral)."""

    Config = options(prediction_type=PREDICTIONS, timestep_spacing=LINSPACE, steps_offset=0, rescale_betas_zero_snr=False)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in float32 inside."""
        sigma, sigma_next, x = *self._ends(timestep), sample.float()
        x0 = self.x0(model_output, x, sigma)
        up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        down = (sigma_next**2 - up**2) ** 0.5
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        prev = x + (x - x0) / sigma * (down - sigma) + noise * up
        return self._result(return_dict, prev.to(model_output.dtype), x0)


class HeunDiscreteScheduler(ExplodingScheduler):
    """Euler steps, each corrected by the slope at its end (Karras et al. 2022, algorithm 1).
    `timesteps` holds every timestep but the first twice: for the correction that ends there, and for the next step.
    """

    Config = options(
        beta_start=0.00085, beta_end=0.012, prediction_type=PREDICTIONS, **SIGMAS, clip_sample=False, clip_sample_range=1.0,
        timestep_spacing=LINSPACE, steps_offset=0,
    )  # fmt: skip
    order = 2

    def _restart(self) -> None:
        super()._restart()
        self.half_done: tuple[Tensor, Tensor] | None = None  # where the step began, and the slope there

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, num_train_timesteps: int | None = None,
        timesteps: list[int] | None = None,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`, or at `timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps)
        self._free_timesteps(timesteps)
        chosen, sigmas = self._space(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._lay_out(chosen[twice], sigmas[twice], device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x after an Euler step, or after its correction."""
        index = self._position(timestep)
        sigma = self.sigmas[index]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.half_done is None:
            self.half_done = sample, slope
            prev = sample + slope * (self.sigmas[index + 1] - sigma)
        else:
            (start, first), self.half_done = self.half_done, None
            prev = start + (first + slope) / 2 * (sigma - self.sigmas[index - 1])
        return self._result(return_dict, prev, x0)


class LMSDiscreteScheduler(ExplodingScheduler):
    """Integrates the polynomial through the last slopes dx/dsigma (`derivatives`, oldest first) exactly (k-diffusion, sample_lms)."""

    Config = options(**SIGMAS, prediction_type=PREDICTIONS, timestep_spacing=LINSPACE, steps_offset=0)

    def _restart(self) -> None:
        super()._restart()
        self.derivatives: tuple[Tensor, ...] = ()

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of the slope at position t - `current_order` in the step from position t, of the last `order` slopes: the integral of a
        Lagrange polynomial of degree order - 1. Gauss-Legendre quadrature with order / 2 points is exact.
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
