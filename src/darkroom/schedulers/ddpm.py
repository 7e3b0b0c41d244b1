"""Ancestral sampling of the trained Markov chain."""

import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options

__all__ = ["DDPMScheduler"]


class DDPMScheduler(KarrasScheduler):
    """Denoising diffusion probabilistic models (Ho et al. 2020, algorithm 2; learned variances: Nichol & Dhariwal 2021)."""

    Config = options(
        variance_type=("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"), clip_sample=True,
        prediction_type=PREDICTIONS, thresholding=False, dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0,
        timestep_spacing=LEADING, steps_offset=0, rescale_betas_zero_snr=False,
    )  # fmt: skip

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, timesteps: list[int] | None = None) -> None:
        """Lay out a run of `num_inference_steps`, or at the given `timesteps`, which descend inside the table."""
        steps, table = self._steps(num_inference_steps, timesteps=timesteps), self.config.num_train_timesteps
        chosen = self._spaced(steps) if timesteps is None else np.array(timesteps, dtype=np.int64)
        if timesteps is not None and (chosen[0] >= table or chosen[-1] < 0 or (np.diff(chosen) >= 0).any()):
            expected = f"descending, from at most {table - 1} to at least 0"
            raise self._error("Timesteps that cannot be followed.", "set_timesteps, timesteps", chosen.tolist(), expected)
        self.num_inference_steps = steps
        self._install(chosen, device)

    def previous_timestep(self, timestep: Timestep) -> int:
        """The timestep that follows in the run; -1 after the last."""
        return [*self._numbers, -1][self.index_for_timestep(timestep) + 1]

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

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """Draw x at the next timestep from the posterior given the predicted x0 (Ho et al. 2020, eq. 6 and 7). With a learned variance,
        `model_output` is (B, 2C, ...): the prediction, then the variance.
        """
        bar, bar_prev = self.alpha_bar(self.number(timestep)), self.alpha_bar(self.previous_timestep(timestep))
        learned, channels = None, sample.shape[1]
        if self.config.variance_type in ("learned", "learned_range"):
            if (got := model_output.shape[1]) != 2 * channels:
                expected = f"{2 * channels}: prediction and variance"
                raise self._error("The network predicts no variance.", "step, model_output", f"{got} channels", expected)
            model_output, learned = model_output.split(channels, dim=1)
        alpha = bar / bar_prev
        x0 = self.limit(self.x0_and_eps(sample, model_output, bar**0.5, (1 - bar) ** 0.5)[0])
        prev = bar_prev**0.5 * (1 - alpha) / (1 - bar) * x0 + alpha**0.5 * (1 - bar_prev) / (1 - bar) * sample
        if self.number(timestep) > 0:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + self._deviation(bar, bar_prev, learned) * noise
        return self._result(return_dict, prev, x0)
