"""Euler steps for EDM networks."""

from __future__ import annotations
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import torch
from torch import Tensor
from ..core.random import Generators
from .base import Device, Stepped, Timestep
from .edm import FINAL, EDMConfig, EDMScheduler

__all__ = ["EDMEulerScheduler"]


class EDMEulerScheduler(EDMScheduler):
    """Euler steps along dx/dsigma, with optional churn (Karras et al. 2022, algorithm 2 without its correction), for networks with EDM's
    preconditioning: Playground v2.5, CosXL ("exponential", sigma_data = 1) and the like; 25 to 50 steps.
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(EDMConfig):
        final_sigmas_type: FINAL = "zero"

    paper = "Karras et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        table = config.num_train_timesteps
        self._begin(torch.arange(table + 1, dtype=torch.float64) / table)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: Tensor | Sequence[float] | None = None
    ) -> None:
        """Lay out a run of `num_inference_steps`, or through `sigmas`: not noise levels, but the shares in [0, 1] of the way from the highest to
        the lowest, as the reference takes them.
        """
        steps = self._steps(num_inference_steps, sigmas=sigmas)  # type: ignore[arg-type]
        ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
        self._begin(ramp if sigmas is None else torch.as_tensor(sigmas, dtype=torch.float64).cpu(), device)
        self.num_inference_steps = steps

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
        s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True, pred_original_sample: Tensor | None = None,
    ) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside. `s_churn` is noise, of standard deviation `s_noise`, added and removed again over the whole run
        between the sigmas `s_tmin` and `s_tmax`. `pred_original_sample` is x0 where it is known, instead of `model_output`.
        """
        sigma, sigma_next = self._ends(timestep)
        x, raised = self._churned(sample.float(), model_output, sigma, s_churn, s_tmin, s_tmax, s_noise, generator)
        x0 = pred_original_sample
        if x0 is None:
            churned = raised is not sigma
            x0 = self.precondition_outputs(x, model_output, raised) if churned else self.convert_model_output(model_output, x)
        prev = x + (x - x0) / raised * (sigma_next - raised)
        return self._result(return_dict, prev.to(model_output.dtype), x0)
