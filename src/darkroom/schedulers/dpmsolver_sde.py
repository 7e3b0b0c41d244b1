"""A second-order SDE solver over one Brownian path."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..errors import MissingDependencyError
from .base import LINSPACE, PREDICTIONS, SIGMAS, Device, Stepped, Timestep, options
from .k_diffusion import ExplodingScheduler
from .process import ancestral, sigma_to_t

__all__ = ["BrownianTreeNoiseSampler", "DPMSolverSDEScheduler"]


class BrownianTreeNoiseSampler:
    """Noise that belongs to a Brownian path in sigma, so that steps over parts of an interval share the noise of a step over all of it: the
    picture of a seed hardly changes with the number of steps (k-diffusion). `seed` is one number, or one for each row.
    """

    def __init__(self, x: Tensor, sigma_min: float, sigma_max: float, seed: int | Sequence[int] | None = None):
        try:
            from torchsde import BrownianInterval
        except ImportError as error:
            raise MissingDependencyError(
                "Brownian trees need torchsde.", where="DPMSolverSDEScheduler", fix="pip install torchsde"
            ) from error
        self.single = seed is None or isinstance(seed, int)
        seeds = [torch.randint(0, 2**63 - 1, []).item()] if seed is None else [seed] if isinstance(seed, int) else list(seed)
        self.ends = torch.as_tensor(sigma_min), torch.as_tensor(sigma_max)
        path = {"tol": 1e-6, "pool_size": 24, "halfway_tree": True, "dtype": x.dtype, "device": x.device}
        self.trees = [BrownianInterval(*self.ends, size=x.shape if self.single else x.shape[1:], entropy=s, **path) for s in seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Standard normal noise for the step from sigma down to sigma_next, in the shape of x."""
        bottom, top = sigma_next.clamp(*self.ends), sigma.clamp(*self.ends)  # which rounding may exceed
        w = torch.stack([tree(bottom, top) for tree in self.trees]) * -1.0
        return (w[0] if self.single else w) / (sigma_next - sigma).abs().sqrt()


class DPMSolverSDEScheduler(ExplodingScheduler):
    """DPM-Solver++(SDE) of second order, singlestep (k-diffusion, sample_dpmpp_sde; Lu et al. 2022b): two evaluations per step, at its start and at
    the middle in log sigma, each followed by noise. Slow and detailed; from about 10 steps (20 evaluations). Needs torchsde.
    `noise_sampler_seed` fixes the Brownian path.
    """

    Config = options(
        beta_start=0.00085, beta_end=0.012, prediction_type=PREDICTIONS, **SIGMAS, noise_sampler_seed=int | tuple, timestep_spacing=LINSPACE,
        steps_offset=0,
    )  # fmt: skip
    order = 2
    _time = np.float64
    accuracy = "2"
    paper = "Lu et al. 2022; k-diffusion"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.noise_sampler_seed = config.noise_sampler_seed
        self.set_timesteps(config.num_train_timesteps)

    def _restart(self) -> None:
        super()._restart()
        self.sample: Tensor | None = None
        self.noise_sampler: BrownianTreeNoiseSampler | None = None

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call begins a step, rather than ends one."""
        return self.sample is None

    def _input(self, position: int) -> tuple[Tensor, Tensor]:
        return self._scales("_seen")[position]

    def set_timesteps(self, num_inference_steps: int, device: Device = None, num_train_timesteps: int | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps over a table of `num_train_timesteps`."""
        self.num_inference_steps = steps = self._steps(num_inference_steps)
        timesteps, levels = self._space(steps, None, num_train_timesteps)
        t = -np.log(levels)
        chosen = np.empty(2 * steps - 1)
        chosen[::2], chosen[1::2] = timesteps, sigma_to_t(np.exp(-(t[:-1] + np.diff(t) * 0.5)), self.sigma_table)
        sigmas = torch.from_numpy(np.append(levels, 0).astype(np.float32))
        t = sigmas.log().neg()
        self._middle = t[:-1] + (t[1:] - t[:-1]) * 0.5
        self._seen = torch.stack([sigmas[:-1], self._middle.neg().exp()], 1).flatten()
        self.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        self._install(chosen, device)

    def _stages(self) -> list[tuple[Tensor, ...]]:
        """For each timestep: the sigmas from and to, the noise's deviation, and the factors of x and x0."""
        ends = self._seen[::2].log().neg()
        start, last = ends.repeat_interleave(2)[:-2], torch.stack([self._middle[:-1], ends[1:]], 1).flatten()
        sigma, to = start.neg().exp(), last.neg().exp()
        up = torch.minimum(to, ancestral(sigma, to)[1])
        down = (to**2 - up**2) ** 0.5
        t = down.log().neg()
        return list(zip(*(values.unbind() for values in (sigma, to, up, t.neg().exp() / sigma, (start - t).expm1()))))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0) -> Stepped:
        """x in the middle of a step, or at its end; `s_noise` is the standard deviation of the noise."""
        index = self._position(timestep)
        if self.noise_sampler is None:
            lowest = min(level for level in self.levels if level > 0)
            self.noise_sampler = BrownianTreeNoiseSampler(sample, lowest, max(self.levels), self.noise_sampler_seed)
        seen = self._input(index)[0]
        x0 = self.x0(model_output, sample, seen)
        if index == len(self._numbers) - 1:
            return self._result(return_dict, sample + (sample - x0) / seen * (self.marks[-1] - seen), x0)
        sigma, to, up, keep, gain = self._once("stages", self._stages)[index]
        start, self.sample = (sample, sample) if self.sample is None else (self.sample, None)
        prev = keep * start - gain * x0
        return self._result(return_dict, prev + self.noise_sampler(sigma, to) * s_noise * up, x0)
