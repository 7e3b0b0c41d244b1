"""Two evaluations per step in sigma: Heun's method, the midpoint method, and an SDE solver over one Brownian path."""

from collections.abc import Callable
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Tensor
from ..core.random import BrownianTreeNoiseSampler, Generators, randn
from .base import FLOWS, LINSPACE, PREDICTIONS, SIGMAS, Device, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler, TwoStages
from .process import ancestral, sigma_to_t

__all__ = [
    "DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "TwoStageScheduler"
]  # fmt: skip


class TwoStageScheduler(TwoStages, ExplodingScheduler):
    """Steps in two halves over betas. `timesteps` has those of the middles between the others."""

    # (levels (steps,), sigmas (steps + 1,), the same as a tensor with an end) -> the timesteps between; keeps what the halves of steps need
    _halve: Callable[[np.ndarray, Tensor], np.ndarray]

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        timesteps, levels = self._space(steps, None, num_train_timesteps)
        chosen = np.empty(2 * steps - 1, dtype=timesteps.dtype)
        chosen[::2], chosen[1::2] = timesteps, self._halve(levels, torch.from_numpy(np.append(levels, 0).astype(np.float32)))
        self._install(chosen, device)


class HeunDiscreteScheduler(TwoStageScheduler, paper="Karras et al. 2022"):
    """Euler steps, each corrected by the slope at its end (Karras et al. 2022, algorithm 1): two evaluations per step and second order. `timesteps`
    holds every timestep but the first twice: for the correction that ends there, and for the next step."""

    Config = options(beta_start=0.00085, beta_end=0.012, prediction_type=FLOWS, **SIGMAS, clip_sample=False, clip_sample_range=1.0,
                     timestep_spacing=LINSPACE, steps_offset=0)  # fmt: skip

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, num_train_timesteps: int | None = None,
                      timesteps: list[int] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`, or at `timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps, timesteps=timesteps)
        self._free_timesteps(timesteps)
        chosen, sigmas = self._space(steps, timesteps, num_train_timesteps)
        twice = np.repeat(np.arange(steps), 2)[1:]
        self._lay_out(chosen[twice].astype(np.float32), sigmas[twice], device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x after an Euler step, or after its correction."""
        index = self._position(timestep)
        sigma = self.marks[index]
        x0 = self.x0(model_output, sample, sigma)
        slope = (sample - x0) / sigma
        if self.sample is None:
            self.sample, self.slope = sample, slope
            return self._result(return_dict, sample + slope * self._differences()[index], x0)
        start, self.sample = self.sample, None
        return self._result(return_dict, start + (self.slope + slope) / 2 * self._differences()[index - 1], x0)


def doubled(values: Tensor) -> Tensor:
    """The first value once and the others twice, as the halves of the steps use them; the last is behind the run's end."""
    return torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])


class MidpointScheduler(TwoStageScheduler, paper="Karras et al. 2022; k-diffusion"):
    """The first half of a step leads to the geometric mean of two sigmas, where the slope for the whole step is taken. `sigmas` has each sigma twice,
    for both halves, and `sigmas_interpol` the middles."""

    _behind: ClassVar[int] = 0  # from a position to its middle
    _middles: Callable[[Tensor], Tensor]  # sigmas -> where the halves of each step but the last meet, (steps - 1,); keeps what steps need

    def _space(self, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        timesteps, levels = super()._space(*args)
        return timesteps.round() if self.sigma_schedule == "karras" and not self.flow else timesteps, levels

    def _halve(self, levels: np.ndarray, sigmas: Tensor) -> np.ndarray:
        between, self.sigmas = self._middles(sigmas).numpy(), doubled(sigmas)
        return between * self.config.num_train_timesteps if self.flow else sigma_to_t(between, self.sigma_table, np.float32)

    def _input(self, position: int) -> tuple[Tensor, Tensor]:
        return super()._input(position) if self.sample is None else self._scales("sigmas_interpol")[position - self._behind]

    def _slope(self, out: Tensor, timestep: Timestep, x: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        """The position, and sigma, x0 and the slope there."""
        index = self._position(timestep)
        sigma = self._input(index)[0]
        x0 = self.x0(out, x, sigma)
        return index, sigma, x0, (x - x0) / sigma


class KDPM2DiscreteScheduler(MidpointScheduler):
    """DPM-Solver-2 in the form of k-diffusion (sample_dpm_2; Karras et al. 2022, algorithm 2 with the midpoint for Heun's rule and no churn): two
    evaluations per step and second order."""

    Config = options(beta_start=0.00085, beta_end=0.012, **SIGMAS, prediction_type=FLOWS, timestep_spacing=LINSPACE, steps_offset=0)

    def _middles(self, sigmas: Tensor) -> Tensor:
        middles = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
        self.sigmas_interpol = doubled(middles)
        return middles[1:-1]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x in the middle of a step, or at its end."""
        index, sigma, x0, slope = self._slope(model_output, timestep, sample)
        if self.sample is None:
            self.sample, start, end = sample, sample, self._scales("sigmas_interpol")[index + 1][0]
        else:
            start, self.sample, sigma, end = self.sample, None, self.marks[index - 1], self.marks[index]
        return self._result(return_dict, start + slope * (end - sigma), x0)


class KDPM2AncestralDiscreteScheduler(MidpointScheduler, accuracy="1", draws="yes"):
    """The midpoint method to a sigma below the next, then noise up to it (k-diffusion, sample_dpm_2_ancestral): the variety of ancestral sampling
    with steps of second order. Not for flows, whose first step would have no middle."""

    Config = options(beta_start=0.00085, beta_end=0.012, **SIGMAS, prediction_type=PREDICTIONS, timestep_spacing=LINSPACE, steps_offset=0)
    _behind = 1

    def _middles(self, sigmas: Tensor) -> Tensor:
        down, up = (torch.cat([ends, ends[-1:]]) for ends in ancestral(sigmas[:-1], sigmas[1:]))
        middles = sigmas.log().lerp(down.log(), 0.5).exp()
        middles[-2:] = 0
        self.sigmas_interpol, self.sigmas_up, self.sigmas_down = doubled(middles), doubled(up), doubled(down)
        return middles[:-2]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x in the middle of a step, or at its end with noise."""
        index, sigma, x0, slope = self._slope(model_output, timestep, sample)
        if self.sample is None:
            self.sample = sample
            return self._result(return_dict, sample + slope * (self._scales("sigmas_interpol")[index][0] - sigma), x0)
        start, self.sample = self.sample, None
        down, up = self._once("ends", lambda: ((self.sigmas_down - self.sigmas).unbind(), self.sigmas_up.unbind()))
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        return self._result(return_dict, start + slope * down[index - 1] + noise * up[index - 1], x0)


class DPMSolverSDEScheduler(TwoStageScheduler, paper="Lu et al. 2022; k-diffusion", draws="yes"):
    """DPM-Solver++(SDE) of second order, singlestep (k-diffusion, sample_dpmpp_sde; Lu et al. 2022b): two evaluations per step, at its start and at
    the middle in log sigma, each followed by noise. Slow and detailed; from about 10 steps (20 evaluations). Needs torchsde. `noise_sampler_seed`
    fixes the Brownian path."""

    Config = options(beta_start=0.00085, beta_end=0.012, prediction_type=PREDICTIONS, **SIGMAS, noise_sampler_seed=(int | tuple | None, None),
                     timestep_spacing=LINSPACE, steps_offset=0)  # fmt: skip
    _time = np.float64
    noise_sampler: BrownianTreeNoiseSampler | None = None
    _history = ("noise_sampler",)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.noise_sampler_seed = config.noise_sampler_seed

    def _input(self, position: int) -> tuple[Tensor, Tensor]:
        return self._scales("_seen")[position]

    def _halve(self, levels: np.ndarray, sigmas: Tensor) -> np.ndarray:
        t, ends = -np.log(levels), sigmas.log().neg()
        self._middle = ends[:-1] + (ends[1:] - ends[:-1]) * 0.5
        self._seen = torch.stack([sigmas[:-1], self._middle.neg().exp()], 1).flatten()
        self.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        return sigma_to_t(np.exp(-(t[:-1] + np.diff(t) * 0.5)), self.sigma_table)

    def _stages(self) -> list[tuple[Tensor, ...]]:
        """For each timestep: the sigmas from and to, the noise's deviation, and the factors of x and x0."""
        ends = self._seen[::2].log().neg()
        start, last = ends.repeat_interleave(2)[:-2], torch.stack([self._middle[:-1], ends[1:]], 1).flatten()
        sigma, to = start.neg().exp(), last.neg().exp()
        up = torch.minimum(to, ancestral(sigma, to)[1])
        t = ((to**2 - up**2) ** 0.5).log().neg()
        return list(zip(*(values.unbind() for values in (sigma, to, up, t.neg().exp() / sigma, (start - t).expm1()))))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0) -> Stepped:
        """x in the middle of a step, or at its end; `s_noise` is the standard deviation of the noise."""
        index = self._position(timestep)
        if self.noise_sampler is None:
            lowest, seed = min(level for level in self.levels if level > 0), self.noise_sampler_seed
            self.noise_sampler = BrownianTreeNoiseSampler(sample, lowest, max(self.levels), seed, type(self).__name__)
        seen = self._input(index)[0]
        x0 = self.x0(model_output, sample, seen)
        if index == len(self._numbers) - 1:
            return self._result(return_dict, sample + (sample - x0) / seen * (self.marks[-1] - seen), x0)
        sigma, to, up, keep, gain = self._once("stages", self._stages)[index]
        start, self.sample = (sample, sample) if self.sample is None else (self.sample, None)
        return self._result(return_dict, keep * start - gain * x0 + self.noise_sampler(sigma, to) * s_noise * up, x0)
