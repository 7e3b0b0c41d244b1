"""The mathematics that schedulers share: tables of betas, where a run places its steps, and what a network predicts.

`out` is the network's output for the sample x = alpha x0 + sigma eps. Variance-preserving coordinates have alpha^2 + sigma^2 = 1, or
alpha + sigma = 1 for flows. Variance-exploding ones divide x by its alpha: alpha = 1, and sigma runs from 0 to about 15 or more."""

import math
from collections.abc import Callable, Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..errors import ConfigError, MissingDependencyError

__all__ = [
    "EPS", "EXPLODING", "SIGMA_SCHEDULES", "X0", "ancestral", "betas", "moments", "shifted", "sigma_to_t", "spaced", "stretched", "time_shift",
    "weights", "zero_snr",
]  # fmt: skip


def _following(alpha_bar: Callable[[float], float], n: int) -> Tensor:
    """Betas, of at most 0.999, whose cumulative product follows alpha_bar(t), t in [0, 1] (Nichol & Dhariwal 2021, eq. 17)."""
    return torch.tensor([min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)], dtype=torch.float32)


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log_snr) / (1 + math.exp(log_snr)))


BETA_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": lambda start, end, n: torch.linspace(start, end, n, dtype=torch.float32),
    "scaled_linear": lambda start, end, n: torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2,
    "squaredcos_cap_v2": lambda start, end, n: _following(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, n),
    "laplace": lambda start, end, n: _following(_laplace, n),
    "exp": lambda start, end, n: _following(lambda t: math.exp(-12.0 * t), n),
    "sigmoid": lambda start, end, n: torch.linspace(-6, 6, n).sigmoid() * (end - start) + start,
}


def betas(steps: int, start: float, end: float, schedule: str, trained: Sequence[float] | None = None) -> Tensor:
    """The betas of a configuration, float32 (steps,); `trained` replaces the named schedule. Raises ConfigError outside [0, 1]."""
    if trained is None and not (0 <= start <= 1 and 0 <= end <= 1):
        raise ConfigError("Betas are variances.", where="beta_start, beta_end", got=(start, end), expected="in [0, 1]")
    table = BETA_SCHEDULES[schedule](start, end, steps) if trained is None else torch.tensor(trained, dtype=torch.float32)
    if not ((table >= 0) & (table <= 1)).all():
        raise ConfigError("Betas are variances.", where="trained_betas", got=table.tolist(), expected="in [0, 1]")
    return table


def zero_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha bar) so that it ends at 0 and keeps its first value (Lin et al. 2023, algorithm 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def spaced(spacing: str, n: int, table: int, offset: int = 0) -> np.ndarray:
    """n descending timesteps of a table, by the rules of Lin et al. 2023, table 2: "leading" takes the first of each of n equal parts and adds
    `offset`, "trailing" takes the last, "linspace" spreads them evenly and does not round."""
    if spacing == "linspace":
        return np.linspace(0, table - 1, n)[::-1]
    return np.arange(n)[::-1] * (table // n) + offset if spacing == "leading" else np.arange(table, 0, -table / n).round() - 1


def _lu(high: float, low: float, n: int) -> np.ndarray:
    """Equal steps in log-SNR (Lu et al. 2022): exponential with the ends rounded to float32."""
    high, low = (float(np.log(np.float32(end))) for end in (high, low))
    return np.exp(high + np.linspace(0, 1, n) * (low - high))


def _beta(high: float, low: float, n: int) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6): more steps at both ends (Lee et al. 2024, "Beta Sampling is All You Need")."""
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        fix = "pip install scipy, or choose Karras or exponential sigmas."
        raise MissingDependencyError("Beta sigmas need scipy.", where="use_beta_sigmas", fix=fix) from error
    return low + betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, n)) * (high - low)


SIGMA_SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {  # (highest sigma, lowest sigma, n) -> n descending sigmas
    # equal steps in sigma^(1/7) (Karras et al. 2022, eq. 5)
    "karras": lambda high, low, n: (high ** (1 / 7) + np.linspace(0, 1, n) * (low ** (1 / 7) - high ** (1 / 7))) ** 7.0,
    "exponential": lambda high, low, n: np.exp(np.linspace(math.log(high), math.log(low), n)),
    "beta": _beta,
    "lu": _lu,
}


def shifted(sigmas: Any, shift: float) -> Any:
    """Flow sigmas in [0, 1], moved towards noise by `shift` > 1: the noise-to-signal ratio is multiplied by it (Esser et al. 2024, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def time_shift(mu: float, sigma: float, t: Any, kind: str = "exponential") -> Any:
    """Flow sigmas t in (0, 1] with noise-to-signal ratio^sigma times e^mu, or times mu where `kind` is "linear" (Black Forest Labs, flux)."""
    factor = math.exp(mu) if kind == "exponential" else mu
    return factor / (factor + (1 / t - 1) ** sigma)


def stretched(sigmas: Any, terminal: float) -> Any:
    """Flow sigmas, whose distance from 1 is scaled so that the last becomes `terminal` (LTX-Video)."""
    clean = 1 - sigmas
    return 1 - clean / (clean[-1] / (1 - terminal))


def ancestral(sigma: Any, sigma_next: Any) -> tuple[Any, Any]:
    """(down, up): the sigma to step down to, and the standard deviation of the fresh noise that leads up to sigma_next again, so that the ratio of
    the variances is that of the reversed diffusion (k-diffusion, get_ancestral_step). Sigmas are noise-to-signal ratios."""
    up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    return (sigma_next**2 - up**2) ** 0.5, up


def moments(g: float, n: int) -> list[float]:
    """Integrals over [0, 1] of e^{(1 - u) g} u^k for k < n, which are k! phi_{k+1}(g): what exponential integrators weigh polynomials with (Hochbruck
    & Ostermann 2010, eq. 2.10). By their recursion upwards, or downwards where that would cancel."""
    if abs(g) > n:
        found = [math.expm1(g) / g]
        for k in range(1, n):
            found.append((k * found[-1] - 1) / g)
        return found
    last, k = 0.0, n + 30  # its error shrinks by g / k with every step down
    found = []
    while k > 0:
        last, k = (1 + g * last) / k, k - 1
        found.append(last)
    return found[::-1][:n]


def weights(g: float, nodes: Sequence[float]) -> list[float]:
    """The weights w of the prediction at u = nodes, for which sum w_i p(u_i) is the integral over [0, 1] of e^{(1 - u) g} p(u) for every polynomial p
    of lower degree than there are nodes: an exponential Adams method."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments(g, len(nodes))).tolist()


def sigma_to_t(sigmas: np.ndarray, table: np.ndarray, counted: Any = np.int64) -> np.ndarray:
    """The fractional timesteps of `sigmas`: linear in log sigma between the neighbours in the ascending `table`, whose places are `counted` in a type
    that decides the precision of the sum."""
    logs, x = np.log(table), np.log(np.maximum(sigmas, 1e-10))
    i = np.clip(np.searchsorted(logs, x, side="right") - 1, 0, len(logs) - 2)
    w = np.clip((logs[i] - x) / (logs[i] - logs[i + 1]), 0, 1)
    i = i.astype(counted)
    return (1 - w) * i + w * (i + 1)


Converter = Callable[[Tensor, Tensor, Any, Any], Tensor]  # (out, x, alpha, sigma) -> x0, or eps
X0: dict[str, Converter] = {
    "epsilon": lambda out, x, a, s: (x - s * out) / a,
    "sample": lambda out, x, a, s: out,
    "original_sample": lambda out, x, a, s: out,
    # v = alpha eps - sigma x0 (Salimans & Ho 2022, app. D); for flows v = eps - x0 (Lipman et al. 2023)
    "v_prediction": lambda out, x, a, s: a * x - s * out,
    "flow_prediction": lambda out, x, a, s: x - s * out,
}
EPS: dict[str, Converter] = {
    "epsilon": lambda out, x, a, s: out,
    "sample": lambda out, x, a, s: (x - a * out) / s,
    "original_sample": lambda out, x, a, s: (x - a * out) / s,
    "v_prediction": lambda out, x, a, s: a * out + s * x,
    "flow_prediction": lambda out, x, a, s: x + a * out,
}
EXPLODING: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {  # (out, x, sigma) -> x0; eps is (x - x0) / sigma
    "epsilon": lambda out, x, s: x - s * out,
    "sample": lambda out, x, s: out,
    "original_sample": lambda out, x, s: out,
    "v_prediction": lambda out, x, s: out * (-s / (s**2 + 1) ** 0.5) + x / (s**2 + 1),
}
