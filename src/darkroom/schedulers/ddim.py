"""Sampling with jumps over timesteps: forwards, backwards, and many timesteps at once."""

from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options, roots

__all__ = ["DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler"]


class DDIMScheduler(KarrasScheduler, paper="Song et al. 2021", draws="optional"):
    """Denoising diffusion implicit models (Song et al. 2021): deterministic with eta = 0, and first order, so 50 steps are its usual number. To be
    chosen where a run must be undone (`DDIMInverseScheduler`), and with `rescale_betas_zero_snr` and "trailing" for networks tuned for it."""

    Config = options(clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type=PREDICTIONS, thresholding=False,
                     dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing=LEADING,
                     rescale_betas_zero_snr=False)  # fmt: skip

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._install(self._spaced(self.num_inference_steps), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
             generator: Generators = None, variance_noise: Tensor | None = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep: alpha' x0 + sqrt(sigma'^2 - std^2) eps + std noise (Song et al. 2021, eq. 12 and 16). Any timestep of the table
        will do; the run's stride leads to the next. `eta` is the share of the ancestral noise, 0 (deterministic) to 1 (as DDPM), `variance_noise`
        that noise, instead of a `generator`; `use_clipped_model_output` takes eps from x0 after it was clipped."""
        self._needs_run()
        t, stride = self.number(timestep), self.config.num_train_timesteps // self.num_inference_steps
        bar, bar_prev = self._bar(t), self._bar(t - stride)
        std = eta * roots((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev))[0] if eta else 0.0
        prev, x0 = self._jump(model_output, sample, self._weights(bar, bar_prev, float(std**2)), use_clipped_model_output)
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise self._error("Two sources of noise.", "step", "generator and variance_noise", "one of them")
            if variance_noise is None:
                variance_noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + std * variance_noise
        return self._result(return_dict, prev, x0)

    def _weights(self, bar: np.float32, bar_prev: np.float32, variance: float = 0.0) -> tuple[Tensor, ...]:
        """alpha and sigma at alpha bar, then the weights of x0 and eps at another, short of the variance of noise."""
        return roots(bar, 1 - bar, bar_prev, 1 - bar_prev - np.float32(variance))

    def _jump(self, out: Tensor, x: Tensor, weights: tuple[Tensor, ...], reclip: bool = False) -> tuple[Tensor, Tensor]:
        """(x, x0): along eps, by `_weights`."""
        alpha, sigma, to_x0, to_eps = weights
        x0, eps = self.x0_and_eps(x, out, alpha, sigma)
        x0 = self.limit(x0)
        if reclip:
            eps = (x - alpha * x0) / sigma
        return to_x0 * x0 + to_eps * eps, x0


class DDIMParallelScheduler(DDIMScheduler, paper="Song et al. 2021; Shih et al. 2023"):
    """DDIM that also steps rows of a batch from timesteps of their own, for parallel sampling (ParaDiGMS: Shih et al. 2023)."""

    _is_ode_scheduler = True

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor, eta: float = 0.0,
                            use_clipped_model_output: bool = False) -> Tensor:  # fmt: skip
        """x one stride further, for the timesteps (B,) of the rows; without noise, so `eta` is 0."""
        self._needs_run()
        self._ensure(not eta, "Noise in a step that has none.", "batch_step_no_noise, eta", eta, 0)
        bar, bar_prev = self.bars(timesteps, model_output)
        weights = tuple(value**0.5 for value in (bar, 1 - bar, bar_prev, 1 - bar_prev))
        return self._jump(model_output, sample, weights, use_clipped_model_output)[0]


class DDIMInverseScheduler(DDIMScheduler, kind="inversion", draws="no"):
    """DDIM run backwards, from a picture to the noise that leads to it (Song et al. 2021, sec. 4.3; Mokady et al. 2023). `timesteps` ascend."""

    Config = options(clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type=PREDICTIONS, clip_sample_range=1.0,
                     timestep_spacing=("leading", "trailing"), rescale_betas_zero_snr=False)  # fmt: skip
    _compatibles = ()

    @classmethod
    def _configure(cls, *args: Any, **options: Any) -> Any:
        if (old := options.pop("set_alpha_to_zero", None)) is not None:  # the older name, which wins
            options["set_alpha_to_one"] = old
        return super()._configure(*args, **options)

    def _assemble(self, config: Any) -> None:
        old = config.get("set_alpha_to_zero")
        super()._assemble(config if old is None else config.replace(set_alpha_to_one=old))
        self.initial_alpha_cumprod = self.final_alpha_cumprod
        self.timesteps = torch.arange(config.num_train_timesteps)

    def _spaced(self, steps: int) -> np.ndarray:
        return super()._spaced(steps)[::-1].copy()

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:  # type: ignore[override]
        """x at this timestep, from the sample one stride before it."""
        self._needs_run()
        t, table = self.number(timestep), self.config.num_train_timesteps
        before = min(t - table // self.num_inference_steps, table - 1)  # type: ignore[operator]
        return self._result(return_dict, *self._jump(model_output, sample, self._weights(self._bar(before), self._bar(t))))
