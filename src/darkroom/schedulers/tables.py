"""Noise tables of discrete-time diffusion: beta, alpha bar and sigma for each training timestep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError

__all__ = ["BETA_SCHEDULES", "betas", "betas_from_alpha_bar", "sigmas", "zero_terminal_snr"]


def betas_from_alpha_bar(alpha_bar: Callable[[float], float], steps: int, max_beta: float = 0.999) -> Tensor:
    """Betas whose cumulative product follows alpha_bar(t), t in [0, 1] (Nichol & Dhariwal 2021, eq. 17)."""
    ratios = (alpha_bar((i + 1) / steps) / alpha_bar(i / steps) for i in range(steps))
    return torch.tensor([min(1 - r, max_beta) for r in ratios], dtype=torch.float32)


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


def _exponential(t: float) -> float:
    return math.exp(-12.0 * t)


def _sigmoid(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(-6, 6, steps).sigmoid() * (end - start) + start


BETA_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, n: torch.linspace(start, end, n, dtype=torch.float32),
    "scaled_linear": lambda start, end, n: torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": lambda start, end, n: betas_from_alpha_bar(_cosine, n),
    "laplace": lambda start, end, n: betas_from_alpha_bar(_laplace, n),
    "exp": lambda start, end, n: betas_from_alpha_bar(_exponential, n),
    "sigmoid": _sigmoid,
}


def betas(schedule: str, start: float, end: float, steps: int, trained: Sequence[float] | None = None) -> Tensor:
    """The betas of a configuration, float32 (steps,); `trained` replaces the named schedule.

    Raises:
        ConfigError: a beta outside [0, 1].
    """
    if trained is None and not (0 <= start <= 1 and 0 <= end <= 1):
        raise ConfigError("Betas are variances.", where="beta_start, beta_end", got=(start, end), expected="in [0, 1]")
    table = BETA_SCHEDULES[schedule](start, end, steps) if trained is None else torch.tensor(trained, dtype=torch.float32)
    if not ((table >= 0) & (table <= 1)).all():
        raise ConfigError("Betas are variances.", where="trained_betas", got=table.tolist(), expected="in [0, 1]")
    return table


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha bar) so that it ends at 0 and keeps its first value (Lin et al. 2023, algorithm 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def sigmas(alphas_cumprod: Tensor) -> Tensor:
    """sigma = sqrt((1 - alpha bar) / alpha bar): the noise of x / sqrt(alpha bar)."""
    return ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
