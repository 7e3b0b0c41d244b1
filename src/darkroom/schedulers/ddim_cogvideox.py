"""Sampling with the shifted noise schedule of CogVideoX: deterministic, and with DPM-Solver++."""

from __future__ import annotations
from typing import Any
import torch
from torch import Tensor
from ..core.random import Generators, randn
from . import process
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options

__all__ = ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"]


class CogVideoXDDIMScheduler(KarrasScheduler):
    """DDIM without noise (Song et al. 2021) over a table whose signal-to-noise ratio is divided by `snr_shift_scale` (CogVideoX: Yang et al.
    2024, after Esser et al. 2024), and is 0 at its end with `rescale_betas_zero_snr`. The checkpoints predict v.

    `clip_sample`, and the arguments of `step` that concern noise and clipping, are accepted and mean nothing, as in the reference.
    """

    Config = options(
        beta_start=0.00085, beta_end=0.0120, beta_schedule=("scaled_linear", "linear", "squaredcos_cap_v2"), clip_sample=True,
        set_alpha_to_one=True, steps_offset=0, prediction_type=PREDICTIONS, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing=LEADING,
        rescale_betas_zero_snr=False, snr_shift_scale=3.0,
    )  # fmt: skip
    paper = "Song et al. 2021"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        config = self.config
        if not config.snr_shift_scale > 0:
            self._refuse("snr_shift_scale", config.snr_shift_scale, "above 0")
        self.betas = process.betas(
            *(config[name] for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"))
        )
        if config.beta_schedule == "scaled_linear" and config.trained_betas is None:  # this one table is of double precision
            ends = (config.beta_start**0.5, config.beta_end**0.5)
            self.betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** 2
        self.alphas = 1.0 - self.betas
        bar = self.alphas.cumprod(0)
        bar = bar / (config.snr_shift_scale + (1 - config.snr_shift_scale) * bar)
        if config.rescale_betas_zero_snr:  # as process.zero_snr, of alpha bar itself
            root = bar.sqrt()
            bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        self.alphas_cumprod = bar
        self.final_alpha_cumprod = torch.tensor(1.0) if config.set_alpha_to_one else bar[0]

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._install(self._spaced(self.num_inference_steps), device)

    def _ends(self, timestep: Timestep) -> tuple[Tensor, Tensor, bool]:
        """alpha bar where a step begins and ends, and whether it ends at the data."""
        self._needs_run()
        t = self.number(timestep)
        before = t - self.config.num_train_timesteps // self.num_inference_steps
        return self.alpha_bar(t), self.alpha_bar(before), before < 0

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Generators = None, variance_noise: Tensor | None = None, return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x at the next timestep: alpha' x0 + sigma' eps (Song et al. 2021, eq. 12 without noise), with eps out of x and x0."""
        bar, bar_prev, _ = self._ends(timestep)
        x0 = process.X0[self.config.prediction_type](model_output, sample, bar**0.5, (1 - bar) ** 0.5)
        kept = ((1 - bar_prev) / (1 - bar)) ** 0.5
        return self._result(return_dict, kept * sample + (bar_prev**0.5 - bar**0.5 * kept) * x0, x0)


class CogVideoXDPMScheduler(CogVideoXDDIMScheduler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, with `DPMSolverMultistepScheduler`'s midpoint form) over the same table: better than DDIM at few
    steps. The loop keeps the last prediction, and hands it back with its timestep.
    """

    accuracy = "2"
    paper = "Lu et al. 2022"

    def get_variables(
        self, alpha_prod_t: Tensor, alpha_prod_t_prev: Tensor, alpha_prod_t_back: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """(h, r, lambda, lambda at the end): half log-SNRs, the step between them, and the last step's size relative to it."""
        bars = [alpha_prod_t, alpha_prod_t_prev] + ([] if alpha_prod_t_back is None else [alpha_prod_t_back])
        start, end, *back = (((bar / (1 - bar)) ** 0.5).log() for bar in bars)
        return end - start, (start - back[0]) / (end - start) if back else None, start, end

    def get_mult(
        self, h: Tensor, r: Tensor | None, alpha_prod_t: Tensor, alpha_prod_t_prev: Tensor, alpha_prod_t_back: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The factors of x and, with its sign changed, of x0; then of this and the last prediction in what replaces x0 at order 2."""
        first = ((1 - alpha_prod_t_prev) / (1 - alpha_prod_t)) ** 0.5 * (-h).exp(), (-2 * h).expm1() * alpha_prod_t_prev**0.5
        return first if alpha_prod_t_back is None or r is None else (*first, 1 + 1 / (2 * r), 1 / (2 * r))

    def step(  # type: ignore[override]
        self, model_output: Tensor, old_pred_original_sample: Tensor | None, timestep: Timestep, timestep_back: Timestep | None, sample: Tensor,
        eta: float = 0.0, use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
        return_dict: bool = False,
    ) -> Stepped:  # fmt: skip
        """x at the next timestep, and the predicted x0. `old_pred_original_sample` and `timestep_back` are the x0 and timestep of the step before,
        None at the first. The step to the data is of order 1.
        """
        bar, bar_prev, last = self._ends(timestep)
        second = None if last else old_pred_original_sample
        if second is not None and timestep_back is None:
            raise self._error("The timestep of the last prediction is needed.", "step, timestep_back", None)
        back = self.alpha_bar(self.number(timestep_back)) if timestep_back is not None else None
        h, r, *_ = self.get_variables(bar, bar_prev, back)
        keep, gain, *mix = self.get_mult(h, r, bar, bar_prev, back)
        x0 = target = process.X0[self.config.prediction_type](model_output, sample, bar**0.5, (1 - bar) ** 0.5)
        noise = randn(sample.shape, generator, sample.device, sample.dtype)
        if second is not None:
            noise = randn(sample.shape, generator, sample.device, sample.dtype)  # the first draw counts, and is not used
            target = mix[0] * x0 - mix[1] * second
        spread = (1 - bar_prev) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        return self._result(return_dict, keep * sample - gain * target + spread * noise, x0)
