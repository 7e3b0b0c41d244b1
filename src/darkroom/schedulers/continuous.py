"""Schedulers of a continuous time: no table of betas, and any number of steps."""

from collections.abc import Sequence
from typing import Any, ClassVar
from torch import Tensor
from . import process
from .base import Scheduler, Timestep
from .k_diffusion import ExplodingScheduler

__all__ = ["ContinuousScheduler", "LevelScheduler"]


class ContinuousScheduler(Scheduler):
    """A scheduler whose number of steps no table bounds."""

    def _steps(self, num_inference_steps: int | None, **schedules: Sequence[float] | None) -> int:
        """The number of steps, given itself or as the length of a schedule, or as several that agree. Raises InputError otherwise."""
        given: dict[str, Any] = {name: len(schedule) for name, schedule in schedules.items() if schedule is not None}
        if num_inference_steps is not None or not given:
            given["num_inference_steps"] = num_inference_steps
        (name, steps), *others = given.items()
        for other, length in others:
            self._ensure(length == steps, "Different numbers of steps.", "set_timesteps", f"{name}: {steps}, {other}: {length}", "the same")
        return self._counted(name, steps)


class LevelScheduler(ContinuousScheduler, ExplodingScheduler):
    """A run is a row of `sigmas`, as of every `ExplodingScheduler`, but they come from the configuration, not from betas."""

    _compatibles: ClassVar[tuple[str, ...]] = ()
    flow = False
    sigma_schedule: str | None = None

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)

    @classmethod
    def _flows(cls) -> bool:
        return False

    def _has_ends(self) -> None:
        """Raise ConfigError for options without a meaning to `_karras`."""
        self._positive("sigma_min", "sigma_data", "rho")
        if self.config.sigma_max < self.config.sigma_min:
            self._refuse("sigma_max", self.config.sigma_max, f"at least sigma_min = {self.config.sigma_min}")

    def _karras(self, ramp: Any) -> Any:
        """The sigmas at these shares of the way from `sigma_max` to `sigma_min`, in equal steps of sigma^(1/rho) (Karras et al. 2022, eq. 5)."""
        low, high = self.config.sigma_min ** (1 / self.config.rho), self.config.sigma_max ** (1 / self.config.rho)
        return (high + ramp * (low - high)) ** self.config.rho

    def x0_and_eps(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return process.X0["flow_prediction"](out, x, alpha, sigma), process.EPS["flow_prediction"](out, x, alpha, sigma)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        return sample
