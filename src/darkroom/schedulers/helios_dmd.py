"""Few-step sampling of videos from small to large."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Tensor
from ..core.random import Generators, randn
from . import process
from .base import Device, Timestep
from .helios import HeliosSchedulerOutput, PyramidConfig, PyramidScheduler

__all__ = ["HeliosDMDScheduler"]


@dataclass(frozen=True, eq=False, repr=False)
class HeliosDMDConfig(PyramidConfig):
    """See `PyramidConfig`; the network predicts the velocity, so `prediction_type` and `use_flow_sigmas` have one value."""

    prediction_type: Literal["flow_prediction"] = "flow_prediction"
    use_flow_sigmas: bool = True
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["linear", "exponential"] = "linear"


class HeliosDMDScheduler(PyramidScheduler):
    """For the distilled checkpoints of Helios (distribution matching: Yin et al. 2024): each step predicts x0 and puts the noise that the stage
    began with back in, at the next level.
    """

    Config = HeliosDMDConfig
    accuracy = "-"
    paper = "Yin et al. 2024"
    _one_more = True

    def set_timesteps(
        self, num_inference_steps: int, stage_index: int | None = None, device: Device = None, sigmas: Any = None, mu: float | None = None,
        is_amplify_first_chunk: bool = False,
    ) -> None:  # fmt: skip
        """As `PyramidScheduler`; the sigmas go to the device too."""
        super().set_timesteps(num_inference_steps, stage_index, device, sigmas, mu, is_amplify_first_chunk)
        self.sigmas = self.sigmas.to(device)

    def _level(self, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """The sigma of the nearest timestep, for each of (B,): (B, 1, 1, 1, 1)."""
        return sigmas[(timesteps - timestep[:, None]).abs().argmin(1)].reshape(-1, 1, 1, 1, 1)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - sigma) x0 + sigma eps for x0 and noise (B, C, F, H, W) at timesteps (B,) of the schedule (`timesteps`, `sigmas`)."""
        sigma = self._level(timestep, sigmas.to(noise.device), timesteps.to(noise.device))
        return ((1 - sigma) * original_samples + sigma * noise).type_as(noise)

    def convert_flow_pred_to_x0(self, flow_pred: Tensor, xt: Tensor, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """x0 from the velocity, in double precision inside; the arguments are those of `add_noise`."""
        out, x, sigmas, timesteps = (tensor.to(flow_pred.device, torch.float64) for tensor in (flow_pred, xt, sigmas, timesteps))
        return process.X0["flow_prediction"](out, x, None, self._level(timestep, sigmas, timesteps)).to(flow_pred.dtype)

    def step(
        self, model_output: Tensor, timestep: Timestep | None = None, sample: Tensor | None = None, generator: Generators = None,
        return_dict: bool = True, cur_sampling_step: int = 0, dmd_noisy_tensor: Tensor | None = None, dmd_sigmas: Tensor | None = None,
        dmd_timesteps: Tensor | None = None, all_timesteps: Tensor | None = None,
    ) -> HeliosSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """x after step `cur_sampling_step` of `all_timesteps`, or at the last of them x0, for videos (B, C, F, H, W). `dmd_noisy_tensor` is the
        noise that is put back, drawn if not given; `dmd_sigmas` and `dmd_timesteps` are the schedule, and as `all_timesteps` this object's if
        not given. Timesteps are truncated to whole numbers, and the nearest of the schedule counts.
        """
        self._needs_run()
        if sample is None or timestep is None:
            raise self._error("A sample and its timestep are needed.", "step", None)
        steps, rows = self.timesteps if all_timesteps is None else all_timesteps, model_output.shape[:1]
        schedule = (self.sigmas if dmd_sigmas is None else dmd_sigmas, self.timesteps if dmd_timesteps is None else dmd_timesteps)
        now = torch.full(rows, int(self.number(timestep)), device=model_output.device)
        prev = self.convert_flow_pred_to_x0(model_output, sample, now, *schedule)
        if cur_sampling_step < len(steps) - 1:
            if dmd_noisy_tensor is None:
                dmd_noisy_tensor = randn(sample.shape, generator, sample.device, sample.dtype)
            later = torch.full(rows, int(self.number(steps[cur_sampling_step + 1])), device=model_output.device)
            prev = self.add_noise(prev, dmd_noisy_tensor, later, *schedule)
        return HeliosSchedulerOutput(prev) if return_dict else (prev,)
