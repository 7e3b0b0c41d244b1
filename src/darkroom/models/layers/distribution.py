"""The posterior of KL autoencoders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ...core.random import randn

__all__ = ["DiagonalGaussian"]


class DiagonalGaussian:
    """A normal distribution with independent entries (Kingma & Welling 2013).

    Args:
        parameters: (B, 2C, ...), the mean and then the logarithm of the variance, which is held within [-30, 20].
    """

    def __init__(self, parameters: Tensor):
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)  # 2 x (B, C, ...)
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return (0.5 * self.logvar).exp()

    @property
    def var(self) -> Tensor:
        return self.logvar.exp()

    def sample(self, generator: Generator | Sequence[Generator] | None = None) -> Tensor:
        """One draw, (B, C, ...): mean + std eps. A list has one generator for each row."""
        eps = randn(self.mean.shape, generator, self.parameters.device, self.parameters.dtype)
        return self.mean + self.std * eps

    def mode(self) -> Tensor:
        """The most likely value, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """The divergence from `other`, or from the standard normal, in nats: (B,)."""
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = ((self.mean - other.mean) ** 2 + self.var) / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """-log p(sample) in nats, summed over `dims` (all but the first): (B,)."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * torch.sum(terms, dim=tuple(dims or range(1, terms.ndim)))
