"""Ancestral sampling as the unCLIP checkpoints were released with."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Tensor
from ..config import Config
from ..core.random import Generators, randn
from . import process
from .base import Device, KarrasScheduler, Scheduler, Stepped, Timestep

__all__ = ["UnCLIPScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class UnCLIPConfig(Config):
    num_train_timesteps: int = 1000
    variance_type: Literal["fixed_small_log", "learned_range"] = "fixed_small_log"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: Literal["epsilon", "sample"] = "epsilon"
    beta_schedule: Literal["squaredcos_cap_v2"] = "squaredcos_cap_v2"


class UnCLIPScheduler(KarrasScheduler):
    """DDPM (Ho et al. 2020, algorithm 2) over the cosine table, for Karlo's unCLIP (Ramesh et al. 2022). Runs have both ends of the table, and a
    step may end at any earlier timestep, `prev_timestep`. For other checkpoints take DDPMScheduler.
    """

    Config = UnCLIPConfig
    _compatibles = ()
    paper = "Ho et al. 2020"

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)
        self.betas = process.betas(config.num_train_timesteps, 0, 0, config.beta_schedule)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod, self.final_alpha_cumprod = self.alphas.cumprod(0), torch.tensor(1.0)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps, at least 2, from the last timestep of the table to the first."""
        steps = self._steps(num_inference_steps)
        if steps < 2:
            raise self._error("A run has both ends of the table.", "set_timesteps, num_inference_steps", steps, "at least 2")
        self.num_inference_steps = steps
        self._install(process.spaced("linspace", steps, self.config.num_train_timesteps).round().astype("int64"), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, prev_timestep: Timestep | None = None, generator: Generators = None,
        return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """Draw x at `prev_timestep` (the next lower one of the table if not given) from the posterior given the predicted x0 (Ho et al. 2020, eq.
        6 and 7). With "learned_range", `model_output` is (B, 2C, ...): the prediction, then the variance.
        """
        t, config, learned = self.number(timestep), self.config, None
        before = t - 1 if prev_timestep is None else self.number(prev_timestep)
        bar, bar_prev = self.alpha_bar(t), self.alpha_bar(before)
        beta = self.betas[t] if before == t - 1 else 1 - bar / bar_prev
        alpha = self.alphas[t] if before == t - 1 else 1 - beta
        if config.variance_type == "learned_range" and model_output.shape[1] == 2 * sample.shape[1]:
            model_output, learned = model_output.split(sample.shape[1], dim=1)
        x0 = self.limit(process.X0[config.prediction_type](model_output, sample, bar**0.5, (1 - bar) ** 0.5))
        prev = bar_prev**0.5 * beta / (1 - bar) * x0 + alpha**0.5 * (1 - bar_prev) / (1 - bar) * sample
        if t > 0:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            variance = (1 - bar_prev) / (1 - bar) * beta
            if config.variance_type == "fixed_small_log":
                deviation = variance.clamp(min=1e-20) ** 0.5
            elif learned is None:
                expected = f"{2 * sample.shape[1]}: prediction and variance"
                raise self._error("The network predicts no variance.", "step, model_output", f"{model_output.shape[1]} channels", expected)
            else:
                share = (learned + 1) / 2
                deviation = (0.5 * (share * beta.log() + (1 - share) * variance.log())).exp()
            prev = prev + deviation * noise
        return self._result(return_dict, prev, x0)
