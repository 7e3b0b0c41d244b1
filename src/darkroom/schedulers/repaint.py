"""Inpainting with any unconditional diffusion model, by resampling."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import numpy as np
import torch
from torch import Tensor
from ..config import Config
from ..core.random import Generators, randn
from . import process
from .base import LARGEST_TABLE, Device, KarrasScheduler, Stepped, Timestep

__all__ = ["RePaintScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class RePaintConfig(Config):
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    eta: float = 0.0
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = True


class RePaintScheduler(KarrasScheduler):
    """RePaint (Lugmayr et al. 2022, algorithm 1): each step denoises, then puts the known part of the image in at the right noise level; jumps
    back towards noise let both parts agree. Denoising is DDIM's, with the share `eta` of the ancestral noise (0: none, 1: as DDPM).
    """

    Config = RePaintConfig
    _compatibles = ()
    paper = "Lugmayr et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self.config.trained_betas is not None:
            self.betas = torch.tensor(self.config.trained_betas, dtype=torch.float64)
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = self.alphas.cumprod(0)
        self.eta = config.eta

    def set_timesteps(self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` noise levels. From every `jump_length`-th level, the run goes back by as many, so that each
        stretch is walked `jump_n_sample` times (Lugmayr et al. 2022, fig. 9). Where timesteps rise, the loop calls `undo_step`.
        """
        table = self.config.num_train_timesteps
        levels = self._steps(min(num_inference_steps, table) if isinstance(num_inference_steps, int) else num_inference_steps)
        if jump_length < 1 or levels * max(jump_n_sample, 1) > LARGEST_TABLE:
            got = f"jump_length {jump_length}, jump_n_sample {jump_n_sample}"
            raise self._error(
                "Jumps that cannot be made.", "set_timesteps", got, f"length at least 1, at most {LARGEST_TABLE} steps in all"
            )
        left = dict.fromkeys(range(0, levels - jump_length, jump_length), jump_n_sample - 1)
        walk = [levels - 1]
        while (level := walk[-1]) > 0 or left.get(0, 0) > 0:
            if left.get(level, 0) > 0:
                left[level] -= 1
                walk += range(level + 1, level + jump_length + 1)
            walk.append(walk[-1] - 1)
        self.num_inference_steps = levels
        self._install(np.array(walk) * (table // levels), device)

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, original_image: Tensor, mask: Tensor, generator: Generators = None,
        return_dict: bool = True,
    ) -> Stepped:  # fmt: skip
        """x one level down, given the predicted eps. `original_image` (B, C, H, W) is known where `mask`, 1 or 0, is 1."""
        self._needs_run()
        t = self.number(timestep)
        bar, bar_prev = self.alpha_bar(t), self.alpha_bar(t - self.config.num_train_timesteps // self.num_inference_steps)
        x0 = process.X0["epsilon"](model_output, sample, bar**0.5, (1 - bar) ** 0.5)
        x0 = x0.clamp(-1, 1) if self.config.clip_sample else x0
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        std = self.eta * ((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev)) ** 0.5
        unknown = bar_prev**0.5 * x0 + (1 - bar_prev - std**2) ** 0.5 * model_output
        if t > 0 and self.eta > 0:
            unknown = unknown + std * noise
        known = (
            bar_prev**0.5 * original_image + (1 - bar_prev) ** 0.5 * noise
        )  # eq. 8a; line 5 of the algorithm has the variance by mistake
        return self._result(return_dict, mask * known + (1.0 - mask) * unknown, x0)

    def undo_step(self, sample: Tensor, timestep: Timestep, generator: Generators = None) -> Tensor:
        """x one level up from `timestep`, through every timestep between."""
        self._needs_run()
        t, stride = self.number(timestep), self.config.num_train_timesteps // self.num_inference_steps
        if not 0 <= t <= self.config.num_train_timesteps - stride:
            raise self._error("There is no level above.", "undo_step, timestep", t, f"at most {self.config.num_train_timesteps - stride}")
        for beta in self.betas[t : t + stride]:
            sample = (1 - beta) ** 0.5 * sample + beta**0.5 * randn(sample.shape, generator, sample.device, sample.dtype)
        return sample
