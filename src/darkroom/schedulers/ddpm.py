"""Ancestral sampling of the trained Markov chain."""

import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options
from .process import X0

__all__ = ["DDPMParallelScheduler", "DDPMScheduler"]


class DDPMScheduler(KarrasScheduler, paper="Ho et al. 2020", draws="yes"):
    """Denoising diffusion probabilistic models (Ho et al. 2020, algorithm 2; learned variances: Nichol & Dhariwal 2021). The reference for quality
    where hundreds of steps can be paid for. `variance_type` is the noise's: the posterior's ("fixed_small"), the chain's ("fixed_large"), or
    predicted."""

    Config = options(variance_type=("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"), clip_sample=True,
                     prediction_type=PREDICTIONS, thresholding=False, dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0,
                     timestep_spacing=LEADING, steps_offset=0, rescale_betas_zero_snr=False)  # fmt: skip

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, timesteps: list[int] | None = None) -> None:
        """Lay out a run of `num_inference_steps`, or at the given `timesteps`, which descend inside the table."""
        steps = self._steps(num_inference_steps, timesteps=timesteps)
        chosen = self._spaced(steps) if timesteps is None else self._descending(timesteps)
        self.num_inference_steps = steps
        self._install(chosen, device)

    def previous_timestep(self, timestep: Timestep) -> int:
        """The timestep that follows in the run; -1 after the last."""
        return int([*self._numbers, -1][self.index_for_timestep(timestep) + 1])

    def _deviation(self, bar: Tensor, bar_prev: Tensor, learned: Tensor | None) -> Tensor:
        """Standard deviation of the step's noise; a learned log variance lies between the fixed ones (Nichol & Dhariwal, eq. 15)."""
        beta = 1 - bar / bar_prev
        posterior = ((1 - bar_prev) / (1 - bar) * beta).clamp(min=1e-20)
        if learned is None:
            return (posterior if self.config.variance_type.startswith("fixed_small") else beta) ** 0.5
        if self.config.variance_type == "learned":
            return learned**0.5
        share = (learned + 1) / 2
        return torch.exp(0.5 * (share * beta.log() + (1 - share) * posterior.log()))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Draw x at the next timestep from the posterior given the predicted x0 (Ho et al. 2020, eq. 6 and 7). With a learned variance,
        `model_output` is (B, 2C, ...): the prediction, then the variance."""
        place = self.index_for_timestep(timestep)
        bar, bar_prev, deviation, *weights = self._once("weights", self._run)[place]
        model_output, learned = self._parted(model_output, sample.shape[1])
        prev, x0 = self._mean(model_output, sample, *weights)
        if self._numbers[place] > 0:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + (deviation if learned is None else self._deviation(bar, bar_prev, learned)) * noise
        return self._result(return_dict, prev, x0)

    def _parted(self, out: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the variance where the network has one."""
        if self.config.variance_type not in ("learned", "learned_range"):
            return out, None
        if (got := out.shape[1]) != 2 * channels:
            expected = f"{2 * channels}: prediction and variance"
            raise self._error("The network predicts no variance.", "step, model_output", f"{got} channels", expected)
        return out[:, :channels], out[:, channels:]

    def _run(self) -> list[tuple[Tensor, ...]]:
        """For every timestep: alpha bar there and at the next, the deviation of its noise where that is fixed, and the weights of the mean."""
        bar = self.alphas_cumprod[torch.tensor(self._numbers)]
        bar_prev = torch.cat([bar[1:], self.final_alpha_cumprod.reshape(1).to(bar)])
        rows = (bar, bar_prev, self._deviation(bar, bar_prev, None), *self._weights(bar, bar_prev))
        return list(zip(*(values.unbind() for values in rows)))

    def _weights(self, bar: Tensor, bar_prev: Tensor) -> tuple[Tensor, ...]:
        """alpha and sigma, and the weights of x0 and x in the posterior's mean (Ho et al. 2020, eq. 7)."""
        alpha = bar / bar_prev
        return bar**0.5, (1 - bar) ** 0.5, bar_prev**0.5 * (1 - alpha) / (1 - bar), alpha**0.5 * (1 - bar_prev) / (1 - bar)

    def _mean(self, out: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, of_x0: Tensor, of_x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean, and x0."""
        x0 = self.limit(X0[self.config.prediction_type](out, x, alpha, sigma))
        return of_x0 * x0 + of_x * x, x0


class DDPMParallelScheduler(DDPMScheduler, paper="Ho et al. 2020; Shih et al. 2023"):
    """DDPM that also steps rows of a batch from timesteps of their own, for parallel sampling (ParaDiGMS: Shih et al. 2023)."""

    _is_ode_scheduler = False

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """The mean of x one stride further, for the timesteps (B,) of the rows."""
        weights = self._weights(*self.bars(timesteps, model_output))
        return self._mean(self._parted(model_output, sample.shape[1])[0], sample, *weights)[0]
