"""Frequency-decoupled guidance."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ...errors import InputError
from ..types import Step, Term
from .cfg import CFG
from .common import Scale, check, projected

__all__ = ["FDG", "from_pyramid", "pyramid"]


def _blur(x: Tensor) -> Tensor:
    """Blur maps (n, 1, H, W) with the binomial kernel (1, 4, 6, 4, 1) / 16, reflecting at the border."""
    if min(x.shape[-2:]) < 3:
        raise InputError(
            "The latents are too small for so many bands.", where="FDG.scale", got=tuple(x.shape[-2:]), fix="Use fewer scales."
        )
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), torch.outer(taps, taps)[None, None])


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def pyramid(x: Tensor, bands: int) -> list[Tensor]:
    """The Laplacian pyramid (Burt & Adelson 1983) of (..., H, W): `bands` tensors, the finest first, each half the size of the one before."""
    *lead, height, width = x.shape
    level, found = x.reshape(-1, 1, height, width), []
    for _ in range(bands - 1):
        height, width = level.shape[-2:]
        smaller = _resize(_blur(level), (height // 2, width // 2))
        found.append(level - _blur(_resize(smaller, (height, width))))
        level = smaller
    return [band.reshape(*lead, *band.shape[-2:]) for band in (*found, level)]


def from_pyramid(bands: Sequence[Tensor]) -> Tensor:
    """The inverse of `pyramid`."""
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = _blur(_resize(x.reshape(-1, 1, *x.shape[-2:]), band.shape[-2:])).reshape(band.shape) + band
    return x


class FDG(CFG):
    """CFG with a scale for each band of frequencies (Sadat et al. 2025, arXiv 2506.19713). Strong guidance of details without the loss of variety
    and the colours of strong guidance of the whole.
    Args:
        scale: one for each band, the finest first, 0 or more; numbers or functions of the timestep. The paper has (10, 5) for SDXL.
        parallel_weights: of the part of each band's direction that is parallel to cond, one or one for each band, 0 or more; 1 is CFG.
        rescale, terms, start, stop, use_original_formulation: as of `CFG`. A band whose scale is no guidance is that of cond.
    Raises InputError for values outside these ranges, other lengths, and latents too small for so many bands (or without height and width).
    """

    def __init__(
        self, scale: Sequence[Scale] = (10.0, 5.0), rescale: float = 0.0, terms: Sequence[Term] = (), *,
        parallel_weights: float | Sequence[float] = 1.0, start: float = 0.0, stop: float = 1.0, use_original_formulation: bool = False,
    ):  # fmt: skip
        if not isinstance(scale, Sequence) or not scale:
            raise InputError("There is one scale for each band.", where="FDG.scale", got=scale, expected="such as (10, 5)")
        super().__init__(tuple(scale), rescale, terms, start=start, stop=stop, use_original_formulation=use_original_formulation)  # type: ignore[arg-type]
        weights = tuple(parallel_weights) if isinstance(parallel_weights, Sequence) else (parallel_weights,) * len(scale)
        for weight in weights:
            check("FDG.parallel_weights", weight)
        if len(weights) != len(scale):
            raise InputError("There is one weight for each band.", where="FDG.parallel_weights", got=len(weights), expected=len(scale))
        self.parallel_weights = weights

    @property
    def _scales(self) -> tuple[Any, ...]:
        return tuple(self.scale) if isinstance(self.scale, Sequence) else (self.scale,) * len(self.parallel_weights)

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, *scales: Any) -> Tensor:  # type: ignore[override]
        if cond.ndim < 4:
            raise InputError("Frequencies need height and width.", where="FDG", got=tuple(cond.shape), expected="latents (B, C, H, W)")
        count, axes = len(self.parallel_weights), tuple(range(1, cond.ndim))
        guided = []
        for u, c, scale, weight in zip(pyramid(uncond, count), pyramid(cond, count), scales, self.parallel_weights, strict=True):
            direction = c - u if weight == 1 else projected(c - u, c, weight, axes)
            guided.append(self.along(u, c, scale, direction) if scale != self.neutral else c)
        return from_pyramid(guided)
