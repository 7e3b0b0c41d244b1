"""What a network predicts, and how x0 and eps follow from it.

`out` is the network's output for the sample x; alpha and sigma are the coefficients of x = alpha x0 + sigma eps.
Two coordinate systems are in use. Variance-preserving: alpha^2 + sigma^2 = 1, or alpha + sigma = 1 for flows.
Variance-exploding: alpha = 1, so x is the former divided by its alpha, and sigma runs from 0 to about 15 or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["EXPLODING", "PRESERVING", "Parameterization", "Prediction", "flow_split", "split", "threshold"]

Prediction = Literal["epsilon", "sample", "v_prediction"]


class Parameterization(NamedTuple):
    """Both functions take (out, x, alpha, sigma)."""

    x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    eps: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


_SAMPLE = Parameterization(lambda out, x, a, s: out, lambda out, x, a, s: (x - a * out) / s)

PRESERVING: dict[str, Parameterization] = {
    "epsilon": Parameterization(lambda out, x, a, s: (x - s * out) / a, lambda out, x, a, s: out),
    "sample": _SAMPLE,
    "original_sample": _SAMPLE,
    # v = alpha eps - sigma x0 (Salimans & Ho 2022, app. D)
    "v_prediction": Parameterization(lambda out, x, a, s: a * x - s * out, lambda out, x, a, s: a * out + s * x),
    # v = eps - x0 (Lipman et al. 2023)
    "flow_prediction": Parameterization(lambda out, x, a, s: x - s * out, lambda out, x, a, s: x + a * out),
}

EXPLODING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # (out, x, sigma) -> x0; eps is (x - x0) / sigma
    "epsilon": lambda out, x, s: x - s * out,
    "sample": lambda out, x, s: out,
    "original_sample": lambda out, x, s: out,
    "v_prediction": lambda out, x, s: out * (-s / (s**2 + 1) ** 0.5) + x / (s**2 + 1),
}


def split(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the variance-preserving process whose ratio sigma / alpha is the given sigma."""
    alpha = 1 / (sigma**2 + 1) ** 0.5
    return alpha, sigma * alpha


def flow_split(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of a straight path from data (sigma = 0) to noise (sigma = 1)."""
    return 1 - sigma, sigma


def threshold(x0: Tensor, ratio: float, ceiling: float) -> Tensor:
    """Dynamic thresholding: clip each row at its quantile of |x0|, then scale it back to [-1, 1] (Saharia et al. 2022, sec. 2.3)."""
    rows = (x0 if x0.dtype in (torch.float32, torch.float64) else x0.float()).flatten(1)
    bound = rows.abs().quantile(ratio, dim=1, keepdim=True).clamp(1, ceiling)
    return (rows.clamp(-bound, bound) / bound).reshape(x0.shape).to(x0.dtype)
