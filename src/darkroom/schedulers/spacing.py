"""Where a run of n steps places its timesteps and sigmas."""

from __future__ import annotations

import math

import numpy as np

from ..errors import MissingDependencyError

__all__ = ["SIGMA_SCHEDULES", "beta", "exponential", "karras", "lu", "sigma_to_t", "spaced", "trailing"]


def trailing(table: int, stride: float) -> np.ndarray:
    """From table - 1 downwards by `stride`, rounded: each timestep is the last of its part of the table."""
    return np.arange(table, 0, -stride).round() - 1


def spaced(spacing: str, n: int, table: int, offset: int = 0) -> np.ndarray:
    """n descending timesteps of a table, by one of the three rules of Lin et al. 2023, table 2; "linspace" does not round.

    "leading" takes the first timestep of each of n equal parts and adds `offset`, "trailing" takes the last.
    """
    if spacing == "linspace":
        return np.linspace(0, table - 1, n)[::-1]
    return np.arange(n)[::-1] * (table // n) + offset if spacing == "leading" else trailing(table, table / n)


def karras(sigma_max: float, sigma_min: float, n: int, rho: float = 7.0) -> np.ndarray:
    """Equal steps in sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + np.linspace(0, 1, n) * (low - high)) ** rho


def exponential(sigma_max: float, sigma_min: float, n: int) -> np.ndarray:
    """Equal steps in log sigma."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), n))


def lu(sigma_max: float, sigma_min: float, n: int) -> np.ndarray:
    """Equal steps in log-SNR (Lu et al. 2022): `exponential` with the ends rounded to float32."""
    high, low = (float(np.log(np.float32(end))) for end in (sigma_max, sigma_min))
    return np.exp(high + np.linspace(0, 1, n) * (low - high))


def beta(sigma_max: float, sigma_min: float, n: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of Beta(a, b): more steps at both ends (Lee et al. 2024, "Beta Sampling is All You Need")."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        fix = "pip install scipy, or choose Karras or exponential sigmas."
        raise MissingDependencyError("Beta sigmas need scipy.", where="use_beta_sigmas", fix=fix) from error
    return sigma_min + betaincinv(a, b, 1 - np.linspace(0, 1, n)) * (sigma_max - sigma_min)


SIGMA_SCHEDULES = {"karras": karras, "exponential": exponential, "beta": beta, "lu": lu}


def sigma_to_t(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The fractional timesteps of `sigmas`: linear in log sigma between the neighbours in the ascending `table`."""
    logs, x = np.log(table), np.log(np.maximum(sigmas, 1e-10))
    i = np.clip(np.searchsorted(logs, x, side="right") - 1, 0, len(logs) - 2)
    w = np.clip((logs[i] - x) / (logs[i] - logs[i + 1]), 0, 1)
    return (1 - w) * i + w * (i + 1)
