"""Sampling of flows whose time runs from noise to data."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from . import process
from .base import Device, Scheduler, Stepped, Timestep
from .tokens import Untabled

__all__ = ["MiniMaxH3Scheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class MiniMaxH3Config(Untabled):
    """`shift` > 1 moves the steps towards noise: the checkpoints have 12 for video and 3 for audio, with a scheduler for each."""

    shift: float = 12.0


class MiniMaxH3Scheduler(Scheduler):
    """Euler's method for the flow of MiniMax-H3 (Liu et al. 2023), whose conventions are its own: the network predicts x0 - eps, timesteps are t
    = 1 - sigma, from noise (0) to data (1), and the final 0 is one of the `num_inference_steps` sigmas, so a run has one step less.
    """

    Config = MiniMaxH3Config
    kind = "flow"
    paper = "Liu et al. 2023"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if not config.shift > 0:
            self._refuse("shift", config.shift, "above 0")
        self.shift = float(config.shift)
        self.sigmas = self._marks = torch.empty(0)
        self._install(np.empty(0, np.float32), None)

    def set_shift(self, shift: float) -> None:
        """The shift of the runs to come, instead of the configured one."""
        if not shift > 0:
            raise self._error("No shift.", "set_shift", shift, "above 0")
        self.shift = float(shift)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | Tensor | None = None
    ) -> None:
        """Lay out a run over `num_inference_steps` shifted sigmas from 1 to 0, without those that float32 cannot tell apart, or over the given
        `sigmas` as they are.
        """
        if sigmas is None:
            if self._steps(num_inference_steps) < 2:
                raise self._error("Two sigmas make a step.", "set_timesteps, num_inference_steps", num_inference_steps, "at least 2")
            levels = process.shifted(torch.linspace(1.0, 0.0, int(num_inference_steps or 0)), self.shift).unique_consecutive()
        else:
            levels = torch.as_tensor(sigmas, dtype=torch.float32).flatten().cpu()
            if len(levels) < 2 or not (levels[1:] < levels[:-1]).all() or levels[-1] != 0:
                raise self._error("No way to the data.", "set_timesteps, sigmas", levels.tolist(), "two or more, falling to 0")
        self.sigmas, self._marks = levels.to(device), levels  # the second stays on the CPU, where reading it waits for no device
        self.num_inference_steps = len(levels) - 1
        self._install((1 - levels[:-1]).numpy(), device)

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor) -> Tensor:
        """t x0 + (1 - t) eps, at any t from 0 to 1, () or (B,)."""
        t = self._time(timestep, sample)
        return t * sample + (1 - t) * noise

    def _time(self, timestep: Timestep, like: Tensor) -> Tensor:
        t = torch.as_tensor(timestep).to(like)
        return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, r x + (1 - r) x0 with r the ratio of the sigmas, in float32 for halves."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, "an item of timesteps, floats")
        index = self._position(timestep)
        # sigma out of the timestep differs from that of the schedule by rounding, and both have their place
        x0 = sample + (1 - self._time(timestep, sample)) * model_output
        wide = torch.float32 if sample.dtype in (torch.float16, torch.bfloat16) else sample.dtype
        now, later = self._marks[index : index + 2].to(wide).unbind()
        prev = later / now * sample.to(wide) + (1 - later / now) * x0.to(wide)
        return self._result(return_dict, prev.to(sample.dtype))
