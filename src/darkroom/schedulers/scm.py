"""Multistep sampling from continuous-time consistency models."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from .base import Device, Scheduler, Stepped, Timestep

__all__ = ["SCMScheduler"]


class SCMScheduler(Scheduler):
    """Predict x0 = cos(t) x - sin(t) F, then add noise of the next angle t (sCM: Lu & Song 2025, TrigFlow): for models distilled so, as SANA-Sprint,
    in 1 to 4 steps. The sample is cos(t) x0 + sin(t) eps with eps of deviation `sigma_data`; `timesteps` are angles, with the end: (steps + 1,).
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        num_train_timesteps: int = 1000
        prediction_type: Literal["trigflow"] = "trigflow"
        sigma_data: float = 0.5

    kind = "consistency"
    paper = "Lu & Song 2025"

    def _assemble(self, config: Config) -> None:  # type: ignore[override]
        super()._assemble(config)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def _know(self, timesteps: Tensor, numbers: list[float]) -> None:
        super()._know(timesteps, numbers)
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}

    def _turn(self, index: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle of a position, computed once."""
        if index not in self._turns:
            angle = torch.tensor(self._numbers[index])
            self._turns[index] = angle.cos(), angle.sin()
        return self._turns[index]

    def set_timesteps(
        self, num_inference_steps: int, timesteps: Sequence[float] | Tensor | None = None, device: Device = None,
        max_timesteps: float | None = 1.5708, intermediate_timesteps: float | None = 1.3,
    ) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` from `max_timesteps` to 0, with two steps by way of `intermediate_timesteps` (None for any other
        number); or at `timesteps`, one more than steps, with both of the others None.
        """
        steps = self._steps(num_inference_steps)
        if timesteps is not None and len(timesteps) != steps + 1:
            raise self._error(
                "Timesteps that do not fit the steps.", "set_timesteps, timesteps", len(timesteps), f"{steps + 1}, with the end"
            )
        if (timesteps is None) == (max_timesteps is None):
            expected = "timesteps with max_timesteps=None, or max_timesteps"
            raise self._error("Exactly one of these is needed.", "set_timesteps, max_timesteps", "both or none", expected)
        if intermediate_timesteps is not None and steps != 2:
            fix = "Pass intermediate_timesteps=None."
            raise self._error("Only a run of 2 steps has one between.", "set_timesteps, intermediate_timesteps", steps, "2 steps", fix)
        if timesteps is not None:
            angles = torch.as_tensor(timesteps).cpu().float()
        elif intermediate_timesteps is not None:
            angles = torch.tensor([max_timesteps, intermediate_timesteps, 0.0])
        else:
            angles = torch.linspace(max_timesteps, 0, steps + 1)  # type: ignore[arg-type]
        self.num_inference_steps = steps
        self._install(angles.numpy(), device)

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Stepped:
        """x at the next angle; float32, as its noise is."""
        self._needs_run()
        index = self._position(timestep)
        if index + 1 >= len(self._numbers):
            raise self._error(
                "The run is over.", "step", f"{index + 1} of {self.num_inference_steps}", fix="Leave out the last of timesteps."
            )
        (cos, sin), (cos_next, sin_next) = self._turn(index), self._turn(index + 1)
        x0 = cos * sample - sin * model_output
        noise = randn(model_output.shape, generator, model_output.device) * self.config.sigma_data
        return self._result(return_dict, cos_next * x0 + sin_next * noise, x0)
