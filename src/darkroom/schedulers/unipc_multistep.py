"""A predictor and a corrector of arbitrary order that share their predictions."""

from __future__ import annotations
from copy import copy
from functools import reduce
from operator import add
from typing import Any
import numpy as np
import torch
from torch import Tensor
from .base import FLOWS, LINSPACE, SIGMAS, Device, Scheduler, Stepped, Timestep, options
from .log_snr import LogSnrScheduler

__all__ = ["UniPCMultistepScheduler"]

FOREIGN = dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")


class Nowhere(list):  # type: ignore[type-arg]
    """A list as a default."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class UniPCMultistepScheduler(LogSnrScheduler):
    """UniPC (Zhao et al. 2023, algorithms 1 and 2): each prediction first corrects the sample that it was made for (UniC), then all of them lead
    to the next (UniP), so the order is one higher at no further evaluations. The usual choice below 15 steps.

    `solver_order` is p of UniP, 2 under guidance and 3 without. `solver_type` is B(h): "bh1", h, for few steps without guidance, or "bh2",
    e^h - 1. `disable_corrector` lists steps after which nothing is corrected, for strong guidance, and `solver_p` is another scheduler to
    predict with. `predict_x0` integrates x0, else eps.
    """

    Config = options(
        solver_order=2, prediction_type=FLOWS, thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0, predict_x0=True,
        solver_type=("bh2", "bh1"), lower_order_final=True, disable_corrector=Nowhere(), solver_p=Scheduler, **SIGMAS, use_flow_sigmas=False,
        flow_shift=1.0, timestep_spacing=LINSPACE, steps_offset=0, final_sigmas_type=("zero", "sigma_min"), rescale_betas_zero_snr=False,
        use_dynamic_shifting=False, time_shift_type=("exponential", "linear"), sigma_min=None, sigma_max=None, shift_terminal=None,
    )  # fmt: skip
    accuracy = "2-4"
    _limits_eps = False
    paper = "Zhao et al. 2023"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config.replace(solver_type="bh2") if config.solver_type in FOREIGN else config)
        if self.config.solver_order < 1:
            self._refuse("solver_order", self.config.solver_order, "at least 1")
        self.data = self.config.predict_x0

    def _restart(self) -> None:
        super()._restart()
        self.last_sample: Tensor | None = None
        self.this_order = 0
        self.solver_p = copy(self.config.solver_p)

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Device = None, sigmas: list[float] | None = None, mu: float | None = None
    ) -> None:
        """Lay out a run of `num_inference_steps`, or for flows through `sigmas`, which are shifted too; `mu` is the log of the flow shift, needed
        with dynamic shifting.
        """
        config = self.config
        if config.use_dynamic_shifting and mu is None:
            raise self._error("The shift of this run is missing.", "set_timesteps, mu", None, "a number", "Pass mu.")
        if sigmas is not None and (not self.flow or self.sigma_schedule is not None):
            raise self._error(
                "Sigmas for a scheduler that has its own.", "set_timesteps, sigmas", len(sigmas), fix="Set use_flow_sigmas=True."
            )
        steps = self._steps(None if sigmas is not None else num_inference_steps, sigmas=sigmas)
        mu = mu if config.use_dynamic_shifting else None
        if sigmas is None:
            timesteps, levels = self._space(steps, mu)
        else:
            levels = self._bounded(self._shifted(np.asarray(sigmas, dtype=np.float64), mu))
            timesteps = levels * config.num_train_timesteps
        self._start(timesteps, levels, device)
        if self.solver_p is not None:
            self.solver_p.set_timesteps(steps, device=device)

    def _flow_sigmas(self, n: int, mu: float | None) -> np.ndarray:
        return self._bounded(self._shifted(np.linspace(1, 1 / self.config.num_train_timesteps, n + 1)[:-1], mu))

    def _bounded(self, sigmas: np.ndarray) -> np.ndarray:
        """Away from sigma = 1, where log-SNR is infinite."""
        return np.append(sigmas[0] - 1e-6, sigmas[1:]) if abs(sigmas[0] - 1) < 1e-6 else sigmas

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, from the sample after its correction."""
        self._needs_run()
        index = self._position(timestep)
        output = self.convert_model_output(model_output, sample)
        if index > 0 and self.last_sample is not None and index - 1 not in self.config.disable_corrector:
            sample = self._update(index - 1, self.this_order, self.last_sample, output)
        self.model_outputs = (*self.model_outputs, output)[-self.config.solver_order :]
        left = len(self._numbers) - index
        most = left if self.config.lower_order_final or (self.levels[index + 1] == 0 and left == 1) else self.config.solver_order
        self.this_order = min(self.config.solver_order, most, len(self.model_outputs))
        self.last_sample = sample
        if self.solver_p is not None:
            self.solver_p = copy(self.solver_p)  # so that a copy of this scheduler keeps its own
            prev: Any = self.solver_p.step(model_output, timestep, sample)[0]
        else:
            prev = self._update(index, self.this_order, sample, None)
        return self._result(return_dict, prev)

    def _update(self, index: int, order: int, x: Tensor, new: Tensor | None) -> Tensor:
        """x at the next position from x at this one; with a `new` prediction there, it is the correction (Zhao et al. 2023, eq. 3 and 9)."""
        scale, gain, gain_b, ratios, rhos = self._once((index, order, new is None), lambda: self._weights(index, order, new is None))
        newest, *before = reversed(self.model_outputs)
        prev = scale * x - gain * newest
        rhos, parts = rhos.to(x.dtype).unbind(), [(m - newest) / ratio for m, ratio in zip(before, ratios)]
        if len(parts) > 1:  # rounded once in half precision
            wide = torch.promote_types(x.dtype, torch.float32)
            parts = [sum(part.to(wide) * rho for rho, part in zip(rhos, parts)).to(x.dtype)]
        else:
            parts = [rho * part for rho, part in zip(rhos, parts)]
        if new is not None:
            parts.append(rhos[-1] * (new - newest))
        return (prev - gain_b * reduce(add, parts) if parts else prev).to(x.dtype)  # there are none to sigma = 0, where h is infinite

    def _weights(self, index: int, order: int, predicts: bool) -> tuple[Any, ...]:
        """The factor of x, those of the newest prediction and of the differences, the positions of the others in steps, and their weights."""
        (alpha_s, sigma_s), (alpha, sigma) = self.splits[index : index + 2]
        scale, gain = (sigma / sigma_s, alpha) if self.data else (alpha / alpha_s, sigma)
        now, *before = self.path.lam[: index + 1].flip(0)[:order].unbind()
        h = self.path.lam[index + 1] - now
        ratios = [(lam - now) / h for lam in before]
        g = -h if self.data else h
        phi = g.expm1()
        b = g if self.config.solver_type == "bh1" else phi
        count = order - 1 if predicts else order
        if order == (2 if predicts else 1) or count == 0 or h == 0:
            rhos = torch.full((max(count, 1),), 0.5)  # the authors' shorter form, where B(h) matters
        else:  # in float32: rounding is part of the result
            rest, factorial, sides = phi / g - 1, 1, []
            for k in range(2, count + 2):
                sides.append(rest * factorial / b)
                factorial *= k
                rest = rest / g - 1 / factorial
            nodes = torch.stack([*ratios, *[torch.ones(())] * (not predicts)])
            rhos = torch.linalg.solve(torch.stack([nodes**k for k in range(count)]), torch.stack(sides))
        return scale, gain * phi, gain * b, ratios, rhos
