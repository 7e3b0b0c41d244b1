"""Multistep sampling from latent consistency models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..core.random import Generators, randn
from ..outputs import Output
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options
from .ddpm import DDPMScheduler
from .process import X0

__all__ = ["LCMScheduler", "LCMSchedulerOutput"]

SIGMA_DATA = 0.5


@dataclass
class LCMSchedulerOutput(Output):
    """One step's result: the sample at the next timestep, and the x0 that it was made of."""

    prev_sample: Tensor
    denoised: Tensor | None = None


class LCMScheduler(KarrasScheduler, kind="consistency", paper="Luo et al. 2023", draws="yes"):
    """Predict x0, then add noise of the next timestep (Luo et al. 2023, algorithm 3): for latent consistency models and LCM-LoRA, in 1 to 8 steps
    with little or no guidance. The timesteps are some of the `original_inference_steps` that the model was distilled on; `timestep_scaling` is how
    steep the boundary condition x0(x, 0) = x is. `timestep_spacing` and `steps_offset` have no effect."""

    Config = options(beta_start=0.00085, beta_end=0.012, beta_schedule=("scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"),
                     original_inference_steps=50, clip_sample=False, clip_sample_range=1.0, set_alpha_to_one=True, steps_offset=0,
                     prediction_type=PREDICTIONS, thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0,
                     timestep_spacing=LEADING, timestep_scaling=10.0, rescale_betas_zero_snr=False)  # fmt: skip
    previous_timestep = DDPMScheduler.previous_timestep
    _compatibles = ()

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self._scales: dict[int, tuple[Tensor, ...]] = {}

    def _level(self, t: Any) -> tuple[Tensor, ...]:
        """alpha, sigma and alpha bar at a timestep, and the scalings of the boundary condition: () each, computed once."""
        if t not in self._scales:
            bar = self.alpha_bar(t)
            self._scales[t] = bar.sqrt(), (1 - bar).sqrt(), bar, *self.get_scalings_for_boundary_condition_discrete(t)
        return self._scales[t]

    def _origin(self, original_inference_steps: int | None, strength: float) -> tuple[int, np.ndarray]:
        """How many timesteps the model was distilled on, and the ascending ones of them that a run of this strength may take."""
        table, steps = self.config.num_train_timesteps, original_inference_steps or self.config.original_inference_steps
        if not 1 <= steps <= table:
            raise self._error("The model has not so many timesteps.", "set_timesteps, original_inference_steps", steps, f"1 to {table}")
        return steps, np.arange(1, int(steps * strength) + 1) * (table // steps) - 1

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, original_inference_steps: int | None = None,
                      timesteps: Sequence[int] | None = None, strength: float = 1.0) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, or at descending `timesteps`. `strength` is the share of the noise that an image gets."""
        steps = self._steps(num_inference_steps, timesteps=timesteps)
        most, origin = self._origin(original_inference_steps, strength)
        if timesteps is None:
            if steps > min(most, len(origin)):
                where, fix = "set_timesteps, num_inference_steps", "Raise original_inference_steps, or strength."
                raise self._error("A run cannot have this number of steps.", where, steps, f"1 to {min(most, len(origin))}", fix)
            chosen = origin[::-1][np.floor(np.linspace(0, len(origin), steps, endpoint=False)).astype(np.int64)]
        else:
            chosen = self._descending(timesteps)
            if (left := min(int(steps * strength), steps)) < 1:
                raise self._error("No step is left.", "set_timesteps, strength", strength, f"at least {1 / steps}")
            chosen = chosen[steps - left :]
        self.num_inference_steps = steps
        self._install(chosen, device)

    def get_scalings_for_boundary_condition_discrete(self, timestep: Timestep) -> tuple[Tensor, Tensor]:
        """c_skip and c_out, 1 and 0 at timestep 0 (Luo et al. 2023, eq. 8 and app. D)."""
        scaled = torch.tensor(self.number(timestep)) * self.config.timestep_scaling
        return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5

    def _ends(self, timestep: Timestep, last: int | None = None) -> tuple[int, int, bool]:
        """The timesteps that a step goes from and to, which behind the run is `last`, or the same, and whether it makes noise. Runs at timesteps that
        `strength` has cut make noise at their end too: so in the reference."""
        self._needs_run()
        index, t = self._position(timestep), self.number(timestep)
        to = self._numbers[index + 1] if index + 1 < len(self._numbers) else t if last is None else last
        return t, to, index != self.num_inference_steps - 1  # type: ignore[operator, return-value]

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep, or x0 after the last."""
        t, t_prev, noisy = self._ends(timestep)
        alpha, sigma, _, c_skip, c_out = self._level(t)
        x0 = self.limit(X0[self.config.prediction_type](model_output, sample, alpha, sigma))
        prev = denoised = c_out * x0 + c_skip * sample
        if noisy:
            alpha, sigma, *_ = self._level(t_prev)
            prev = alpha * denoised + sigma * randn(model_output.shape, generator, model_output.device, denoised.dtype)
        return self._result(return_dict, prev, denoised, LCMSchedulerOutput)
