"""Linear multistep sampling on the manifold of the diffusion process."""

from typing import Any
import numpy as np
import torch
from torch import Tensor
from .base import LEADING, PREDICTIONS, Device, KarrasScheduler, Stepped, Timestep, options, roots
from .process import EPS

__all__ = ["PNDMScheduler", "extrapolated"]

# by order: the divisor, and the weights from the newest prediction on
ADAMS_BASHFORTH = {1: (1, (1,)), 2: (2, (3, -1)), 3: (12, (23, -16, 5)), 4: (24, (55, -59, 37, -9))}


def extrapolated(ets: tuple[Tensor, ...]) -> Tensor:
    """The mean prediction over the next step by Adams and Bashforth's method, from the last ones, at most 4, oldest first."""
    divisor, (newest, *weights) = ADAMS_BASHFORTH[len(ets)]
    total = ets[-1] * newest
    for weight, older in zip(weights, ets[-2::-1]):
        total = total + weight * older
    return total / divisor


MOST_MOVES = 4096  # that are kept, at about 2 kB each


class PNDMScheduler(KarrasScheduler, accuracy="2-4", paper="Liu et al. 2022"):
    """Pseudo numerical methods for diffusion models (Liu et al. 2022): Runge-Kutta to start (F-PNDM), then Adams-Bashforth. With `skip_prk_steps`
    (S-PNDM and the latent diffusion checkpoints) the start is a second evaluation of the second timestep. Fourth order but at the start: for 20 to 50
    steps without strong guidance. `ets` are the last predictions, oldest first, and `counter` the steps taken in this run."""

    Config = options(skip_prk_steps=False, set_alpha_to_one=False, prediction_type=PREDICTIONS, timestep_spacing=LEADING, steps_offset=0)
    ets: tuple[Tensor, ...] = ()
    counter = 0
    cur_sample: Any = None
    cur_model_output: Any = 0.0
    _history = ("ets", "counter", "cur_sample", "cur_model_output")

    def _assemble(self, config: Any) -> None:
        self._moves: dict[
            tuple[int, int], tuple[Tensor, ...]
        ] = {}  # between timesteps of the table, which never changes: copies share them
        super()._assemble(config)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps, at least 4 of them if it starts with Runge-Kutta."""
        n = self._steps(num_inference_steps)
        base = self._spaced(n)
        if self.config.skip_prk_steps:
            self.prk_timesteps, plms = base[:0], np.concatenate([base[:1], base[1:2], base[1:]])
        elif n < 4:
            what, where = "Too few steps for the Runge-Kutta start.", "set_timesteps, num_inference_steps"
            raise self._error(what, where, n, "at least 4", "Take more steps, or set skip_prk_steps=True.")
        else:
            stages = np.stack([base[:4] + self.config.num_train_timesteps // n // 2, base[:4]], 1).ravel()[1:]  # with points between
            self.prk_timesteps, plms = stages.repeat(2)[1:-1], base[3:]
        self.num_inference_steps = n
        self._install(np.concatenate([self.prk_timesteps, plms]), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep by the method that is due. Raises InputError before `set_timesteps`."""
        self._needs_run()
        method = self._runge_kutta if self.counter < len(self.prk_timesteps) else self._multistep
        prev = method(model_output, self.number(timestep), sample, self.config.num_train_timesteps // self.num_inference_steps)
        self.counter += 1
        return self._result(return_dict, prev)

    def _runge_kutta(self, out: Tensor, t: int, sample: Tensor, stride: int) -> Tensor:
        """One of four stages of a step, which together weigh 1/6, 1/3, 1/3, 1/6 (Liu et al. 2022)."""
        stage = self.counter % 4
        if stage == 0:
            self.ets, self.cur_sample = (*self.ets, out), sample
        total = self.cur_model_output + (1 / 6 if stage in (0, 3) else 1 / 3) * out
        self.cur_model_output = total if stage < 3 else 0.0
        start, end = int(self.prk_timesteps[self.counter - stage]), t if stage % 2 else t - stride // 2
        return self._transfer(self.cur_sample, start, end, out if stage < 3 else total)

    def _multistep(self, out: Tensor, t: int, sample: Tensor, stride: int) -> Tensor:
        """Adams-Bashforth over the last predictions; the second call of a run repeats the first step with their mean."""
        if self.counter == 1:
            return self._transfer(self.cur_sample, t + stride, t, (out + self.ets[-1]) / 2)
        self.ets = (*self.ets[-3:], out)
        if self.counter == 0:
            self.cur_sample = sample
        return self._transfer(sample, t, t - stride, extrapolated(self.ets))

    def _transfer(self, x: Tensor, t: int, t_prev: int, out: Tensor) -> Tensor:
        """x along its eps from one timestep to another (Liu et al. 2022, eq. 9, with a difference of roots turned into a sum)."""
        if (weights := self._moves.get((t, t_prev))) is None:
            if len(self._moves) >= MOST_MOVES:
                self._moves.clear()
            weights = self._moves[t, t_prev] = self._move(self._bar(t), self._bar(t_prev))
        alpha, sigma, keep, gain, divisor = weights
        return keep * x - gain * EPS[self.config.prediction_type](out, x, alpha, sigma) / divisor

    def _move(self, bar: np.float32, bar_prev: np.float32) -> tuple[Tensor, ...]:
        alpha, sigma, keep, sigma_prev, product = roots(bar, 1 - bar, bar_prev / bar, 1 - bar_prev, bar * (1 - bar) * bar_prev)
        return alpha, sigma, keep, torch.tensor(float(bar_prev - bar)), sigma_prev * float(bar) + product
