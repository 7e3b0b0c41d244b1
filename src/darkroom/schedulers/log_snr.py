"""What the solvers share that step in log-SNR: how a run is laid out, what they integrate, and of which order a step may be."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar
import numpy as np
import torch
from torch import Tensor
from . import process
from .base import Device, SigmaScheduler, Timestep

__all__ = ["LogSnrScheduler"]


class LogSnrScheduler(SigmaScheduler):
    """Exponential integrators of dx = (linear in x) + (the network's x0 or eps): the linear part exactly, the other by a polynomial in lambda, which
    is half the log-SNR (Lu et al. 2022). `model_outputs` are the last predictions, oldest first."""

    data: bool  # whether x0 is integrated, or eps
    model_outputs: tuple[Tensor, ...] = ()
    _history: ClassVar[tuple[str, ...]] = ("model_outputs",)
    _limits_eps: ClassVar[bool] = True  # whether eps is made of a limited x0

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self._option("use_lu_lambdas") and self.sigma_schedule != "karras":
            self.sigma_schedule = "lu"
        self.lambda_t = self.alphas_cumprod.sqrt().log() - (1 - self.alphas_cumprod).sqrt().log()

    def _absent(self, timestep: float) -> int:
        return len(self._numbers) - 1

    def _flow_sigmas(self, n: int, mu: float | None) -> np.ndarray:
        """A flow's sigmas, from just below 1, where log-SNR is finite: (n,)."""
        return self._shifted(1.0 - np.linspace(1, 1 / self.config.num_train_timesteps, n + 1)[:0:-1], mu)

    def _last(self) -> int:
        """How much of the table is used: noise beyond the clipped log-SNR is left out."""
        least = self._option("lambda_min_clipped", -math.inf)
        return self.config.num_train_timesteps - int(torch.searchsorted(self.lambda_t.flip(0), least))

    def _evenly(self, n: int, left_out: int = -1) -> np.ndarray:
        """n descending whole timesteps by the configured rule: n + 1 without the last (or the first, 0), but "trailing" has n anyway."""
        table, last, spacing = self.config.num_train_timesteps, self._last(), self._option("timestep_spacing", "linspace")
        if spacing == "trailing":
            return np.arange(last, 0, -table / n).round() - 1
        return np.delete(process.spaced(spacing, n + 1, last, self._option("steps_offset", 0)).round(), left_out)

    def _space(self, n: int, mu: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas of a run of n steps, without the end."""
        if self.sigma_schedule is not None:
            timesteps, sigmas = self._scheduled(self.sigma_table[-1], self.sigma_table[0], n)
            return timesteps.round() if self._whole() and not self.flow else timesteps, sigmas
        if self.flow:
            return (sigmas := self._flow_sigmas(n, mu)) * self.config.num_train_timesteps, sigmas
        return (timesteps := self._evenly(n)), self._sigmas_at(timesteps)

    def _whole(self) -> bool:
        """Whether timesteps of a sigma schedule are rounded, rather than cut."""
        return self.sigma_schedule == "karras"

    def _end(self, sigmas: np.ndarray) -> float:
        """Where the last step ends."""
        if self._option("final_sigmas_type") == "zero":
            return 0.0
        return sigmas[-1] if self.flow or self.sigma_schedule is not None else self.sigma_table[0]

    def _start(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device) -> None:
        self._lay_out(timesteps.astype(np.int64), sigmas, device, self._end(sigmas))
        self.num_inference_steps = len(self._numbers)

    def _mu(self, mu: float | None) -> float | None:
        fits, fix = mu is None or self.config.use_dynamic_shifting, "Set use_dynamic_shifting=True."
        self._ensure(fits, "A shift for a scheduler that has none.", "set_timesteps, mu", mu, fix=fix)
        return mu

    def _free_sigmas(self, sigmas: Sequence[float]) -> None:
        """Raise InputError for custom sigmas unless it is a flow, and without a schedule of its own."""
        free, fix = self.flow and self.sigma_schedule is None, "Set use_flow_sigmas=True."
        self._ensure(free, "Sigmas for a scheduler that has its own.", "set_timesteps, sigmas", len(sigmas), fix=fix)

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the solver integrates: x0, limited as configured, or eps."""
        kind = self.config.prediction_type
        if self._option("variance_type", None) is not None and kind == "epsilon":
            model_output = model_output[:, : sample.shape[1]]
        alpha, sigma = self.splits[self.step_index or 0]
        if self.data:
            return self.limit(process.X0[kind](model_output, sample, alpha, sigma))
        eps = process.EPS[kind](model_output, sample, alpha, sigma)
        limits = self._limits_eps and self._option("thresholding")
        return (sample - alpha * self.limit((sample - sigma * eps) / alpha)) / sigma if limits else eps

    def _remember(self, model_output: Tensor, timestep: Timestep, sample: Tensor) -> tuple[int, Tensor]:
        """The position of a step that begins, and its prediction, which joins the history."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        self.model_outputs = (*self.model_outputs, output)[-self.config.solver_order :]
        return index, output

    def _order(self, index: int) -> int:
        """The order of the step at this position: what the history allows, and less at the end, where high orders are unstable."""
        config, left = self.config, len(self._numbers) - index
        early = config.lower_order_final and len(self._numbers) < 15
        final = left == 1 and (early or self._option("euler_at_final") or self._option("final_sigmas_type") == "zero")
        if final or self.levels[index + 1] == self.levels[index]:  # as some schedules end: a step of no length has no derivatives
            return 1
        return min(config.solver_order, len(self.model_outputs), 2 if left == 2 and early else 3)
