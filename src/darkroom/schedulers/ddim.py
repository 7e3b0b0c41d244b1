"""Deterministic sampling with jumps over timesteps."""

from torch import Tensor
from ..core.random import Generators, randn
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options

__all__ = ["DDIMScheduler"]


class DDIMScheduler(KarrasScheduler):
    """Denoising diffusion implicit models (Song et al. 2021)."""

    Config = options(
        clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type=PREDICTIONS, thresholding=False, dynamic_thresholding_ratio=0.995,
        clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing=LEADING, rescale_betas_zero_snr=False,
    )  # fmt: skip

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._install(self._spaced(self.num_inference_steps), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Generators = None, variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next timestep: alpha' x0 + sqrt(sigma'^2 - std^2) eps + std noise (Song et al. 2021, eq. 12 and 16).
        Any timestep of the table will do; the run's stride leads to the next. `eta` is the share of the ancestral noise, 0 (deterministic) to
        1 (as DDPM), `variance_noise` that noise, instead of a `generator`; `use_clipped_model_output` takes eps from x0 after it was clipped.
        """
        self._needs_run()
        t, stride = self.number(timestep), self.config.num_train_timesteps // self.num_inference_steps
        bar, bar_prev = self.alpha_bar(t), self.alpha_bar(t - stride)
        alpha, sigma = bar**0.5, (1 - bar) ** 0.5
        x0, eps = self.x0_and_eps(sample, model_output, alpha, sigma)
        x0 = self.limit(x0)
        if use_clipped_model_output:
            eps = (sample - alpha * x0) / sigma
        std = eta * ((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev)) ** 0.5
        prev = bar_prev**0.5 * x0 + (1 - bar_prev - std**2) ** 0.5 * eps
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise self._error("Two sources of noise.", "step", "generator and variance_noise", "one of them")
            if variance_noise is None:
                variance_noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + std * variance_noise
        return self._result(return_dict, prev, x0)
