"""Multistep sampling from consistency models of a straight path."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from torch import Tensor
from torch.nn.functional import interpolate
from ..core.random import Generators, randn
from .base import Stepped, Timestep
from .flow import ShiftedFlowConfig, ShiftedFlowScheduler

__all__ = ["FlowMatchLCMScheduler"]

MODES = Literal["nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact"]


class FlowMatchLCMScheduler(ShiftedFlowScheduler):
    """Predict x0, then add fresh noise of the next level (Song et al. 2023, algorithm 1): for flow-matching models distilled to 1 to 8 steps.

    With `scale_factors`, one less than steps, x0 is resized after each step to that multiple of its first size, by `upscale_mode`: coarse
    steps run on small samples, as models distilled scale by scale do (Starodubcev et al. 2025).
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(ShiftedFlowConfig):
        scale_factors: tuple[float, ...] | None = None
        upscale_mode: MODES = "bicubic"

    def _assemble(self, config: Config) -> None:  # type: ignore[override]
        super()._assemble(config)
        self.scale_factors, self.upscale_mode = config.scale_factors, config.upscale_mode

    def _restart(self) -> None:
        super()._restart()
        self._size: tuple[int, ...] = ()

    def set_scale_factors(self, scale_factors: Sequence[float], upscale_mode: MODES) -> None:
        """Use these for the runs to come."""
        self.scale_factors, self.upscale_mode = tuple(scale_factors), upscale_mode

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in float32 inside, and of the next size."""
        factors, steps = self.scale_factors if self.upscale_mode else (), len(self._numbers)
        if factors and steps != len(factors) + 1:
            raise self._error("The sizes do not fit the steps.", "step, scale_factors", len(factors), f"{steps - 1}, for {steps} steps")
        (sigma, sigma_next), first = self._ends(timestep), not self._size
        index = self._position(timestep)
        if first:
            self._size = tuple(model_output.shape[2:])
        x0 = self.x0(model_output, sample.float(), sigma)
        if factors and index < len(factors):
            x0 = interpolate(x0, size=[round(factors[index] * side) for side in self._size], mode=self.upscale_mode)
        noise = randn(x0.shape, generator, x0.device, x0.dtype)
        prev = (1 - sigma_next) * x0 + sigma_next * noise
        return self._result(return_dict, prev.to(model_output.dtype))
