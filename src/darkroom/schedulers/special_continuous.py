"""Diffusion in continuous time: by stochastic differential equations, EDM's sampler for them, and from consistency models."""

from __future__ import annotations
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from ..outputs import Output
from . import process
from .base import Device, SchedulerOutput, Stepped, Timestep, options
from .continuous import ContinuousScheduler, LevelScheduler
from .edm import preconditioning
from .special import SpecialScheduler, broad

__all__ = [
    "CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler", "KarrasVeOutput", "KarrasVeScheduler", "SCMScheduler",
    "ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "SdeVeOutput",
]  # fmt: skip

TIMESTEPS = (1008, 512)  # of the decoder


@dataclass
class KarrasVeOutput(Output):
    """The sample at the next sigma, the slope dx/dsigma that it was reached by, and the x0 of that slope."""

    prev_sample: Tensor
    derivative: Tensor
    pred_original_sample: Tensor | None = None


@dataclass
class SdeVeOutput(Output):
    """The sample at the next time, and its mean, without the noise of the step."""

    prev_sample: Tensor
    prev_sample_mean: Tensor


class KarrasVeScheduler(SpecialScheduler, ContinuousScheduler, accuracy="2", paper="Karras et al. 2022", draws="optional"):
    """Raise the noise a little, step down along dx/dsigma, and correct the step by the slope at its end (Karras et al. 2022, algorithm 2 and
    table 5), for unconditional VE models: `add_noise_to_input`, `step`, then `step_correct` unless the end is 0. `s_churn` is the noise added
    over the run where sigma is from `s_min` to `s_max`, and `s_noise` its deviation. `timesteps` are positions in `schedule`."""

    Config = options(BaseConfig, sigma_min=0.02, sigma_max=(float, 100), s_noise=1.007, s_churn=(float, 80), s_min=0.05, s_max=(float, 50))
    order = 2
    _bounds = {"sigma_min": 0, "sigma_max": 0}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.init_noise_sigma = config.sigma_max
        self.set_timesteps(1000)
        self.num_inference_steps = None

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`, 2 or more."""
        steps = self._steps(num_inference_steps)
        self._ensure(steps > 1, "Too few steps for a schedule.", "set_timesteps, num_inference_steps", steps, "at least 2")
        timesteps = torch.arange(steps - 1, -1, -1)
        low, high = self.config.sigma_min**2, self.config.sigma_max**2
        self.schedule = (high * (low / high) ** (timesteps / (steps - 1))).to(device)
        self._plan(steps, timesteps.numpy(), device)

    def add_noise_to_input(self, sample: Tensor, sigma: Any, generator: Generators = None) -> tuple[Tensor, Any]:
        """The sample with its share of noise over the run, and the sigma that it has then."""
        self._needs_run()
        inside = self.config.s_min <= sigma <= self.config.s_max
        gamma = min(self.config.s_churn / self.num_inference_steps, 2**0.5 - 1) if inside else 0  # type: ignore[operator]
        noise = self.config.s_noise * randn(sample.shape, generator).to(sample.device)
        raised = sigma + gamma * sigma
        return sample + (raised**2 - sigma**2) ** 0.5 * noise, raised

    def _slope(self, out: Tensor, x: Tensor, sigma: Any) -> tuple[Tensor, Tensor]:
        """x0, and dx/dsigma. The network predicts -eps."""
        x0 = x + sigma * out
        return x0, (x - x0) / sigma

    def step(self, model_output: Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: Tensor,
             return_dict: bool = True) -> KarrasVeOutput | tuple[Tensor, ...]:  # fmt: skip
        """x at `sigma_prev` by an Euler step from `sample_hat` at `sigma_hat`."""
        x0, slope = self._slope(model_output, sample_hat, sigma_hat)
        prev = sample_hat + (sigma_prev - sigma_hat) * slope
        return KarrasVeOutput(prev, slope, x0) if return_dict else (prev, slope)

    def step_correct(self, model_output: Tensor, sigma_hat: Any, sigma_prev: Any, sample_hat: Tensor, sample_prev: Tensor,
                     derivative: Tensor, return_dict: bool = True) -> KarrasVeOutput | tuple[Tensor, ...]:  # fmt: skip
        """x at `sigma_prev` again, by the mean of the slope `derivative` and that at `sample_prev`, where `model_output` is from."""
        x0, slope = self._slope(model_output, sample_prev, sigma_prev)
        prev = sample_hat + (sigma_prev - sigma_hat) * (0.5 * derivative + 0.5 * slope)
        return KarrasVeOutput(prev, derivative, x0) if return_dict else (prev, derivative)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) of the schedule."""
        sigma = self.schedule.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + noise * broad(sigma, original_samples)


class ScoreSdeVeScheduler(SpecialScheduler, ContinuousScheduler, paper="Song et al. 2021", draws="yes"):
    """Reverse diffusion with Langevin corrections (Song et al. 2021, algorithms 2 and 4), for networks that predict the score of x0 + sigma eps:
    `correct_steps` times `step_correct`, then `step_pred`, at each of hundreds of times. `snr` sets the size of the corrections. `timesteps` run
    from 1 to `sampling_eps`; `sigmas` and the ascending `discrete_sigmas`, of which the steps are made, go between `sigma_min` and `sigma_max`."""

    Config = options(BaseConfig, num_train_timesteps=2000, snr=0.15, sigma_min=0.01, sigma_max=1348.0, sampling_eps=1e-5, correct_steps=1)
    _bounds = {"sigma_min": 0, "sigma_max": 0, "sampling_eps": 0}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.init_noise_sigma = config.sigma_max
        self.set_timesteps(config.num_train_timesteps)
        self.set_sigmas(config.num_train_timesteps)
        self.num_inference_steps = None

    def set_timesteps(self, num_inference_steps: int, sampling_eps: float | None = None, device: Device = None) -> None:
        """Lay out the times of a run, down to `sampling_eps`."""
        steps, end = self._steps(num_inference_steps), self.config.sampling_eps if sampling_eps is None else sampling_eps
        self._plan(steps, torch.linspace(1, end, steps).numpy(), device)

    def set_sigmas(self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
                   sampling_eps: float | None = None) -> None:  # fmt: skip
        """Lay out the sigmas of a run. `sampling_eps` has no effect: the times are known already."""
        low = self.config.sigma_min if sigma_min is None else sigma_min
        high = self.config.sigma_max if sigma_max is None else sigma_max
        self.discrete_sigmas = torch.linspace(math.log(low), math.log(high), self._steps(num_inference_steps)).exp()
        self.sigmas = low * (high / low) ** torch.tensor(self._numbers)
        self._memo = {}

    def _discrete(self, device: torch.device) -> Tensor:
        return self._once(device, lambda: self.discrete_sigmas.to(device))

    def get_adjacent_sigma(self, timesteps: Tensor, t: Tensor) -> Tensor:
        """The sigmas below those at these positions (B,), 0 below the first."""
        return torch.where(timesteps == 0, torch.zeros_like(t.to(timesteps.device)), self._discrete(timesteps.device)[timesteps - 1])

    def step_pred(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
                  return_dict: bool = True) -> SdeVeOutput | tuple[Tensor, ...]:  # fmt: skip
        """x at the next time, after a step of the reverse SDE (Song et al. 2021, eq. 46)."""
        t = timestep * torch.ones(len(sample), device=sample.device)
        positions = (t * (len(self._numbers) - 1)).long()
        sigma = self._discrete(sample.device)[positions]
        std = broad((sigma**2 - self.get_adjacent_sigma(positions, t) ** 2) ** 0.5, sample)
        mean = sample + std**2 * model_output
        prev = mean + std * randn(sample.shape, generator, sample.device, sample.dtype)
        return SdeVeOutput(prev, mean) if return_dict else (prev, mean)

    def step_correct(self, model_output: Tensor, sample: Tensor, generator: Generators = None,
                     return_dict: bool = True) -> SchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """x at the same time, after a step of Langevin dynamics, whose size suits the norms of noise and score (algorithm 4)."""
        noise = randn(sample.shape, generator).to(sample.device)
        norm, noise_norm = (values.flatten(1).norm(dim=-1).mean() for values in (model_output, noise))
        size = (self.config.snr * noise_norm / norm) ** 2 * 2 * broad(torch.ones(len(sample), device=sample.device), sample)
        prev = sample + size * model_output + (size * 2) ** 0.5 * noise
        return SchedulerOutput(prev) if return_dict else (prev,)

    def add_noise(self, original_samples: Tensor, noise: Tensor | None, timesteps: Tensor) -> Tensor:
        """x0 + sigma eps for x0 and noise (B, ...) at positions (B,) of `discrete_sigmas`; fresh noise where none is given."""
        sigma = self._discrete(original_samples.device)[timesteps.to(original_samples.device)]
        return original_samples + (torch.randn_like(original_samples) if noise is None else noise) * broad(sigma, original_samples)


class ScoreSdeVpScheduler(SpecialScheduler, ContinuousScheduler, paper="Song et al. 2021", draws="yes"):
    """Euler-Maruyama steps of the reverse SDE (Song et al. 2021, eq. 6 and 11), for networks that predict eps of a process whose beta grows from
    `beta_min` to `beta_max` over times 0 to 1; 1000 steps or more. `timesteps` run from 1 to `sampling_eps`."""

    Config = options(BaseConfig, num_train_timesteps=2000, beta_min=0.1, beta_max=(float, 20), sampling_eps=1e-3)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)
        self.num_inference_steps = None

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps`."""
        steps = self._steps(num_inference_steps)
        self._plan(steps, torch.linspace(1, self.config.sampling_eps, steps).numpy(), device)

    def step_pred(self, score: Tensor, x: Tensor, t: Tensor, generator: Generators = None) -> tuple[Tensor, Tensor]:
        """x at the next time, and its mean, for the network's output `score`, which is eps, and times t () or (B,)."""
        self._needs_run()
        low, high, t = self.config.beta_min, self.config.beta_max, torch.as_tensor(t)
        beta = broad(low + t * (high - low), x)
        std = broad((1 - torch.exp(2 * (-0.25 * t**2 * (high - low) - 0.5 * t * low))).sqrt(), x)
        dt, diffusion = -1 / len(self._numbers), beta.sqrt()
        mean = x + (-0.5 * beta * x - diffusion**2 * (-score / std)) * dt
        return mean + diffusion * math.sqrt(-dt) * randn(x.shape, generator, x.device, x.dtype), mean


class CMStochasticIterativeScheduler(LevelScheduler, kind="consistency", paper="Song et al. 2023", draws="yes"):
    """Predict x0, then add noise of the next sigma (Song et al. 2023, algorithm 1), in 1 or more steps: for consistency models of the EDM family.
    The sigmas are `num_train_timesteps` points between `sigma_max` and `sigma_min` (Karras et al. 2022, eq. 5, with `rho`), of which a run takes
    some; `s_noise` scales the noise, and `clip_denoised` keeps x0 in [-1, 1]."""

    Config = options(
        BaseConfig, num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, s_noise=1.0, rho=7.0, clip_denoised=True
    )

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._has_ends()
        sigmas = self._karras(np.linspace(0, 1, config.num_train_timesteps))
        self.sigmas = torch.from_numpy(sigmas)
        self._install(self.sigma_to_t(sigmas), None)

    @property
    def init_noise_sigma(self) -> float:  # type: ignore[override]
        return self.config.sigma_max

    def sigma_to_t(self, sigmas: Any) -> np.ndarray:
        """1000 c_noise, which the network takes for its timestep."""
        return 250 * np.log(np.asarray(sigmas, dtype=np.float64) + 1e-44)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None,  # type: ignore[override]
                      timesteps: Sequence[int] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or at `timesteps`: descending positions in the table, the highest noise last."""
        table = self.config.num_train_timesteps
        if timesteps is None:
            if (steps := self._steps(num_inference_steps)) > table:
                raise self._error("A run cannot have this number of steps.", "set_timesteps, num_inference_steps", steps, f"1 to {table}")
            self.num_inference_steps, places = steps, np.arange(steps) * (table // steps)
        elif num_inference_steps is not None:
            raise self._error("Exactly one of these is needed.", "set_timesteps", "both", "num_inference_steps or timesteps")
        else:
            self._steps(None, timesteps=timesteps)
            places = np.asarray(timesteps, dtype=np.int64)[::-1]
            if places[0] < 0 or places[-1] >= table or (np.diff(places) <= 0).any():
                expected = f"descending, from at most {table - 1} to at least 0"
                raise self._error("Timesteps that cannot be followed.", "set_timesteps, timesteps", list(timesteps), expected)
        sigmas = self._karras(places / max(table - 1, 1))
        self._lay_out(self.sigma_to_t(sigmas), sigmas, device, end=self.config.sigma_min)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """x / sqrt(sigma^2 + sigma_data^2), of unit variance. The first call of a run finds its position by `timestep`."""
        return sample / self._conditions(self._position(timestep))[0]  # type: ignore[arg-type]

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """c_skip and c_out of x0 = c_skip x + c_out F(x): 1 and 0 at sigma_min (Song et al. 2023, app. C)."""
        data, above = self.config.sigma_data, sigma - self.config.sigma_min
        return data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5

    def _conditions(self, index: int) -> tuple[Tensor, ...]:
        """1 / c_in, c_skip, c_out, and the deviation of the noise after the step, of a position: () each."""

        def make() -> list[tuple[Tensor, ...]]:
            sigmas, low, high = self.sigmas, self.config.sigma_min, self.config.sigma_max
            std = (torch.cat([sigmas[1:], sigmas[-1:]]).clamp(low, high) ** 2 - low**2).clamp(min=0) ** 0.5
            rows = (sigmas**2 + self.config.sigma_data**2) ** 0.5, *self.get_scalings_for_boundary_condition(sigmas), std
            return list(zip(*(row.unbind() for row in rows)))

        return self._once("conditions", make)[index]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma; x0 itself where the run has one step."""
        self._ends(timestep)
        _, c_skip, c_out, std = self._conditions(self._position(timestep))
        x0 = c_out * model_output + c_skip * sample
        prev = x0.clamp(-1, 1) if self.config.clip_denoised else x0
        if len(self._numbers) > 1:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            prev = prev + noise * self.config.s_noise * std
        return self._result(return_dict, prev)


class ConsistencyDecoderScheduler(SpecialScheduler, kind="consistency", paper="Song et al. 2023", draws="yes"):
    """The schedule of DALL-E 3's consistency decoder, from noise to the pixels of a latent (Betker et al. 2023; Song et al. 2023, algorithm 1): at
    two fixed timesteps, x0 is predicted with EDM's preconditioning. The sample is alpha x0 + sigma eps on a cosine (Nichol & Dhariwal 2021)."""

    Config = options(BaseConfig, num_train_timesteps=1024, sigma_data=0.5)
    _bounds = {"num_train_timesteps": max(TIMESTEPS), "sigma_data": 0}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        bar = (1 - process.betas(config.num_train_timesteps, 0, 1, "squaredcos_cap_v2")).cumprod(0)
        self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod = bar.sqrt(), (1 - bar).sqrt()
        stretch = (1 / bar).sqrt()  # from variance-preserving coordinates to those of EDM
        c_skip, self.c_out, c_in = preconditioning((1 / bar - 1).sqrt(), config.sigma_data)
        self.c_skip, self.c_in = stretch * c_skip, stretch * c_in
        self.init_noise_sigma = self.sqrt_one_minus_alphas_cumprod[TIMESTEPS[0]]
        self._install(np.array(TIMESTEPS), None)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None) -> None:
        """Lay out a run, of 2 steps."""
        self._ensure(num_inference_steps == 2, "A run has 2 steps.", "set_timesteps, num_inference_steps", num_inference_steps, 2)
        self._plan(2, np.array(TIMESTEPS), device)

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """c_in x, of unit variance."""
        return sample * self.c_in[self.number(timestep)]  # type: ignore[arg-type]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep, or x0 after the last."""
        t, place = self.number(timestep), self.index_for_timestep(timestep)
        x0 = self.c_out[t] * model_output + self.c_skip[t] * sample
        if place == len(TIMESTEPS) - 1:
            return self._result(return_dict, x0)
        alpha, sigma = (c[TIMESTEPS[place + 1]].to(x0.dtype) for c in (self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod))
        return self._result(return_dict, alpha * x0 + sigma * randn(x0.shape, generator, x0.device, x0.dtype))


class SCMScheduler(SpecialScheduler, kind="consistency", paper="Lu & Song 2025", draws="yes"):
    """Predict x0 = cos(t) x - sin(t) F, then add noise of the next angle t (sCM: Lu & Song 2025, TrigFlow): for models distilled so, as SANA-Sprint,
    in 1 to 4 steps. The sample is cos(t) x0 + sin(t) eps with eps of deviation `sigma_data`; `timesteps` are angles, with the end: (steps + 1,)."""

    Config = options(BaseConfig, num_train_timesteps=1000, prediction_type=("trigflow",), sigma_data=0.5)

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def _turn(self, index: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle of a position."""
        angle = torch.tensor(self._numbers[index])
        return self._once(index, lambda: (angle.cos(), angle.sin()))

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[float] | Tensor | None = None, device: Device = None,
                      max_timesteps: float | None = 1.5708, intermediate_timesteps: float | None = 1.3) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` from `max_timesteps` to 0, with two steps by way of `intermediate_timesteps` (None for any other
        number); or at `timesteps`, one more than steps, with both of the others None."""
        steps = self._steps(num_inference_steps)
        got = steps + 1 if timesteps is None else len(timesteps)
        self._ensure(got == steps + 1, "Timesteps that do not fit the steps.", "set_timesteps, timesteps", got, f"{steps + 1}, the end too")
        one, expected = (timesteps is None) != (max_timesteps is None), "timesteps with max_timesteps=None, or max_timesteps"
        self._ensure(one, "Exactly one of these is needed.", "set_timesteps, max_timesteps", "both or none", expected)
        fits = intermediate_timesteps is None or steps == 2
        self._ensure(fits, "Only a run of 2 steps has one between.", "set_timesteps, intermediate_timesteps", steps, "2 steps, or None")
        angles: Any = timesteps
        if timesteps is None:
            way = (max_timesteps, intermediate_timesteps, 0.0)
            angles = torch.linspace(max_timesteps, 0, steps + 1) if intermediate_timesteps is None else way  # type: ignore[arg-type]
        self._plan(steps, torch.as_tensor(angles).cpu().float().numpy(), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next angle; float32, as its noise is."""
        self._needs_run()
        index, last = self._position(timestep), len(self._numbers) - 1
        self._ensure(index < last, "The run is over.", "step", index + 1, f"at most {last}: leave out the last of timesteps")
        (cos, sin), (cos_next, sin_next) = self._turn(index), self._turn(index + 1)
        x0 = cos * sample - sin * model_output
        noise = randn(model_output.shape, generator, model_output.device) * self.config.sigma_data
        return self._result(return_dict, cos_next * x0 + sin_next * noise, x0)
