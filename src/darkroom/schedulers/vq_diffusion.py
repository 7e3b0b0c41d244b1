"""Sampling of tokens that were replaced and masked."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Generator, Tensor
from ..config import Config
from .base import Device, Scheduler, Stepped, Timestep
from .tokens import gumbel, uniform

__all__ = ["VQDiffusionScheduler"]

LOG_ZERO = math.log(1e-30)  # what stands for the logarithm of 0


@dataclass(frozen=True, eq=False, repr=False)
class VQDiffusionConfig(Config):
    """`num_vec_classes` counts the tokens, the mask among them as the last. Over the process the share of intact tokens goes from
    `alpha_cum_start` to `alpha_cum_end` and that of masked ones from `gamma_cum_start` to `gamma_cum_end`, both evenly.
    """

    num_vec_classes: int
    num_train_timesteps: int = 100
    alpha_cum_start: float = 0.99999
    alpha_cum_end: float = 0.000009
    gamma_cum_start: float = 0.000009
    gamma_cum_end: float = 0.99999


class VQDiffusionScheduler(Scheduler):
    """Discrete diffusion with the mask-and-replace kernel (VQ-Diffusion: Gu et al. 2022, sec. 4.1): in a step a token stays with probability
    alpha, becomes any of the K - 1 others with beta each, or the mask with gamma. `log_at`, `log_bt` and `log_ct` are their logarithms for one
    step, (T,), `log_cumprod_at` and so on for all steps so far, (T + 1,), with those of no step last, on the CPU.
    """

    Config = VQDiffusionConfig
    kind = "tokens"
    accuracy = "-"
    paper = "Gu et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        steps, self.num_embed = config.num_train_timesteps, config.num_vec_classes
        if self.num_embed < 2:
            self._refuse("num_vec_classes", self.num_embed, "at least 2, the mask and another")
        if steps < 2:
            self._refuse("num_train_timesteps", steps, "at least 2")
        self.mask_class, part = self.num_embed - 1, np.arange(steps) / (steps - 1)
        alpha = np.append(1, part * (config.alpha_cum_end - config.alpha_cum_start) + config.alpha_cum_start)
        kept = 1 - np.append(0, part * (config.gamma_cum_end - config.gamma_cum_start) + config.gamma_cum_start)  # not masked
        with np.errstate(all="ignore"):
            single, single_masked = alpha[1:] / alpha[:-1], 1 - kept[1:] / kept[:-1]
            self.log_at, self.log_bt, self.log_ct = self._logs(single, single_masked)
            self.log_cumprod_at, self.log_cumprod_bt, self.log_cumprod_ct = self._logs(np.roll(alpha, -1), np.roll(1 - kept, -1))
        names = ("log_at", "log_bt", "log_ct", "log_cumprod_at", "log_cumprod_bt", "log_cumprod_ct")
        if any(getattr(self, name).isnan().any() for name in names):
            self._refuse("alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end", "these", "shares that never exceed 1 together")
        self._install(np.arange(steps)[::-1].copy(), None)

    def _logs(self, alpha: np.ndarray, gamma: np.ndarray) -> list[Tensor]:
        beta = (1 - alpha - gamma) / (self.num_embed - 1)
        return [torch.from_numpy(values).log().float() for values in (alpha, beta, gamma)]

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run over the last `num_inference_steps` timesteps of the process: fewer than all begin in its middle."""
        self.num_inference_steps = self._steps(num_inference_steps)
        self._install(np.arange(self.num_inference_steps)[::-1].copy(), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generator | None = None, return_dict: bool = True
    ) -> Stepped:
        """Draw the tokens (B, N) one timestep earlier, given the log-probabilities of the original ones, (B, K - 1, N)."""
        logs = self.q_posterior(model_output, sample, timestep) if self.number(timestep) != 0 else model_output
        return self._result(return_dict, (gumbel(uniform(logs.shape, logs, generator), 1e-30) + logs).argmax(1))

    def q_posterior(self, log_p_x_0: Tensor, x_t: Tensor, t: Timestep) -> Tensor:
        """log p(x_{t-1} | x_t), (B, K, N): the sum over x0 of q(x_t | x_{t-1}) q(x_{t-1} | x0) p(x0) / q(x_t | x0) (Gu et al. 2022, eq. 11)."""
        t = int(self.number(t))
        masked = (x_t == self.mask_class)[:, None]
        ratio = log_p_x_0 - self._reached(x_t, masked, self.log_cumprod_at[t], self.log_cumprod_bt[t], self.log_cumprod_ct[t])
        total = ratio.logsumexp(1, keepdim=True)
        a, b, c = (table[t - 1].item() for table in (self.log_cumprod_at, self.log_cumprod_bt, self.log_cumprod_ct))
        earlier = ratio - total + a
        earlier = torch.cat([earlier.logaddexp(torch.full_like(earlier, b)), torch.full_like(total, c)], 1)
        step = self._reached(x_t, masked, self.log_at[t], self.log_bt[t], self.log_ct[t])
        from_mask = torch.where(masked, 0.0, LOG_ZERO)  # a mask stays one
        return earlier + torch.cat([step, from_mask], 1) + total

    def _reached(self, x_t: Tensor, masked: Tensor, log_a: Tensor, log_b: Tensor, log_c: Tensor) -> Tensor:
        """The log-probability of x_t after each of the tokens that are no mask, (B, K - 1, N) (Gu et al. 2022, eq. 7)."""
        same, other = log_a.logaddexp(log_b).item(), (log_a + LOG_ZERO).logaddexp(log_b).item()
        classes = torch.arange(self.mask_class, device=x_t.device)[:, None]
        return torch.where(masked, log_c.item(), torch.where(x_t[:, None] == classes, same, other))
