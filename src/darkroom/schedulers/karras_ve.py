"""The stochastic sampler of EDM, for a variance-exploding model."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any, ClassVar
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from ..outputs import Output
from .base import Device
from .continuous import ContinuousScheduler

__all__ = ["KarrasVeOutput", "KarrasVeScheduler"]


@dataclass
class KarrasVeOutput(Output):
    """The sample at the next sigma, the slope dx/dsigma that it was reached by, and the x0 of that slope."""

    prev_sample: Tensor
    derivative: Tensor
    pred_original_sample: Tensor | None = None


class KarrasVeScheduler(ContinuousScheduler):
    """Raise the noise a little, step down along dx/dsigma, and correct the step by the slope at its end (Karras et al. 2022, algorithm 2 and
    table 5), for unconditional VE models: `add_noise_to_input`, `step`, then `step_correct` unless the end is 0. `s_churn` is the noise added
    over the run where sigma is from `s_min` to `s_max`, and `s_noise` its deviation.

    `timesteps` are positions in `schedule`, descending: (steps,).
    """

    @dataclass(frozen=True, eq=False, repr=False)
    class Config(BaseConfig):
        sigma_min: float = 0.02
        sigma_max: float = 100
        s_noise: float = 1.007
        s_churn: float = 80
        s_min: float = 0.05
        s_max: float = 50
        num_train_timesteps: ClassVar[int] = 1000  # for the base; this class has no table

        def __getitem__(self, name: str) -> Any:
            return self.num_train_timesteps if name == "num_train_timesteps" else super().__getitem__(name)

    order = 2
    accuracy = "2"
    paper = "Karras et al. 2022"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        for name in ("sigma_min", "sigma_max"):
            if not config[name] > 0:
                self._refuse(name, config[name], "above 0")
        self.set_timesteps(config.num_train_timesteps)
        self.num_inference_steps = None

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        return self.config.sigma_max

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`, 2 or more."""
        if (steps := self._steps(num_inference_steps)) < 2:
            raise self._error("Too few steps for a schedule.", "set_timesteps, num_inference_steps", steps, "at least 2")
        self.num_inference_steps = steps
        timesteps = torch.arange(steps - 1, -1, -1)
        low, high = self.config.sigma_min**2, self.config.sigma_max**2
        self.schedule = (high * (low / high) ** (timesteps / (steps - 1))).to(device)
        self._install(timesteps.numpy(), device)

    def add_noise_to_input(self, sample: Tensor, sigma: Any, generator: Generators = None) -> tuple[Tensor, Any]:
        """The sample with its share of noise over the run, and the sigma that it has then."""
        self._needs_run()
        inside = self.config.s_min <= sigma <= self.config.s_max
        gamma = min(self.config.s_churn / self.num_inference_steps, 2**0.5 - 1) if inside else 0  # type: ignore[operator]
        noise = self.config.s_noise * randn(sample.shape, generator).to(sample.device)
        raised = sigma + gamma * sigma
        return sample + (raised**2 - sigma**2) ** 0.5 * noise, raised

    def step(
        self, model_output: Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: Tensor, return_dict: bool = True
    ) -> KarrasVeOutput | tuple[Tensor, ...]:
        """x at `sigma_prev` by an Euler step from `sample_hat` at `sigma_hat`. The network predicts -eps."""
        x0 = sample_hat + sigma_hat * model_output
        slope = (sample_hat - x0) / sigma_hat
        prev = sample_hat + (sigma_prev - sigma_hat) * slope
        return KarrasVeOutput(prev, slope, x0) if return_dict else (prev, slope)

    def step_correct(
        self, model_output: Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: Tensor, sample_prev: Tensor, derivative: Tensor,
        return_dict: bool = True,
    ) -> KarrasVeOutput | tuple[Tensor, ...]:  # fmt: skip
        """x at `sigma_prev` again, by the mean of the slope `derivative` and that at `sample_prev`, where `model_output` is from."""
        x0 = sample_prev + sigma_prev * model_output
        slope = (sample_prev - x0) / sigma_prev
        prev = sample_hat + (sigma_prev - sigma_hat) * (0.5 * derivative + 0.5 * slope)
        return KarrasVeOutput(prev, derivative, x0) if return_dict else (prev, derivative)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        sigma = self.schedule.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + noise * sigma.reshape(-1, *[1] * (original_samples.ndim - 1))
