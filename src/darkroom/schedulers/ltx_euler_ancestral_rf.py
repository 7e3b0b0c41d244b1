"""Ancestral Euler steps along a straight path."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from .base import Device, Stepped, Timestep
from .flow import FlowScheduler
from .flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

__all__ = ["LTXEulerAncestralRFScheduler"]


class LTXEulerAncestralRFScheduler(FlowScheduler):
    """Step below the next sigma, then add noise up to it, on a rectified flow (ComfyUI, sample_euler_ancestral_RF; LTX-Video). `eta` is the share
    of the way that noise has, 0 (Euler) to 1, and `s_noise` its standard deviation. For few steps of distilled video models.

    The configuration of a FlowMatchEulerDiscreteScheduler says how a run is shifted that is not given by its sigmas.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 1000
        eta: float = 1.0
        s_noise: float = 1.0

    _compatibles = ("FlowMatchEulerDiscreteScheduler",)
    paper = "ComfyUI; LTX-Video"

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | Tensor | None = None,
        timesteps: Sequence[float] | Tensor | None = None, mu: float | None = None, **kwargs: object,
    ) -> None:  # fmt: skip
        """Lay out a run through `sigmas`, the end with them, or else of `num_inference_steps`, shifted by `mu`. Without sigmas, `timesteps` are
        taken for sigmas, as in the reference; other options are accepted and have no effect.
        """
        if sigmas is None and timesteps is None:
            base = FlowMatchEulerDiscreteScheduler.from_config(self.config)
            base.set_timesteps(num_inference_steps, mu=mu)
            self.sigmas, self.num_inference_steps = base.sigmas, base.num_inference_steps
            return self._install(base.timesteps.numpy(), device)
        levels = torch.as_tensor(timesteps if sigmas is None else sigmas, dtype=torch.float32).cpu()
        if levels.ndim != 1 or len(levels) < 2:
            raise self._error("Sigmas that make no run.", "set_timesteps, sigmas", tuple(levels.shape), "a row of 2 or more, with the end")
        self.sigmas, self.num_inference_steps = levels, len(levels) - 1
        return self._install((levels * self.config.num_train_timesteps).numpy().astype(np.float32), device)

    def _coefficients(self) -> list[tuple[float, ...]]:
        """For every step: down / sigma, the factor of its result, and the noise's deviation."""
        sigma, end = self.sigmas[:-1], self.sigmas[1:]
        down = end * (1 + (end / sigma - 1) * self.config.eta)
        alpha, alpha_down = 1 - end, 1 - down
        std = (end**2 - down**2 * alpha**2 / (alpha_down**2 + 1e-12)).clamp(min=0).sqrt()
        return list(zip(*(values.tolist() for values in (down / sigma, alpha / (alpha_down + 1e-12), std))))

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next sigma, in float32 inside; at the end of the schedule, x itself."""
        self._needs_run()
        last = len(self.sigmas) - 1
        if self.step_index == last or (self.step_index is None and self._position(timestep) == last):
            self.step_index = last - 1  # a schedule with its end in it has a timestep more than steps
            return self._result(return_dict, sample)
        sigma, sigma_next = self._ends(timestep)
        x = sample.float()
        prev = self.x0(model_output.float(), x, sigma)
        if abs(sigma_next) >= 1e-8:
            share, factor, std = self._once("coefficients", self._coefficients)[self._position(timestep)]
            prev = share * x + (1 - share) * prev
            if self.config.eta > 0 and self.config.s_noise > 0:
                prev = factor * prev + randn(x.shape, generator, x.device, x.dtype) * std * self.config.s_noise
        return self._result(return_dict, prev.to(sample.dtype))
