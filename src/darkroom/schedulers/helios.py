"""Sampling of videos from small to large in one run of a flow."""

from __future__ import annotations
import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal
import numpy as np
import torch
from torch import Tensor
from ..config import Config
from ..core.random import Generators
from ..outputs import Output
from . import process
from .base import Device, Scheduler, Timestep
from .unipc_multistep import FOREIGN, UniPCMultistepScheduler

__all__ = ["HeliosScheduler", "HeliosSchedulerOutput", "PyramidConfig", "PyramidScheduler"]


@dataclass
class HeliosSchedulerOutput(Output):
    """The sample at the next timestep; of UniPC also the corrected sample that it began at, and its order."""

    prev_sample: Tensor
    model_outputs: Tensor | None = None
    last_sample: Tensor | None = None
    this_order: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PyramidConfig(Config):
    """`stage_range` splits the time of the flow into `stages`, each at twice the resolution of the last. `gamma` is the correlation of the noise
    that joins two stages. `shift` > 1 moves all steps towards noise; `use_dynamic_shifting` takes it from the call instead.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    stages: int = 3
    stage_range: tuple[float, ...] = (0, 1 / 3, 2 / 3, 1)
    gamma: float = 1 / 3


@dataclass(frozen=True, eq=False, repr=False)
class HeliosConfig(PyramidConfig):
    """See `PyramidConfig` for the stages and `UniPCMultistepScheduler` for the solver. `scheduler_type` "euler" steps along the flow instead;
    "dmd" only lays out runs for `HeliosDMDScheduler`.
    """

    thresholding: bool = False
    prediction_type: Literal["flow_prediction", "epsilon", "sample", "v_prediction"] = "flow_prediction"
    solver_order: int = 2
    predict_x0: bool = True
    solver_type: Literal["bh2", "bh1", "midpoint", "heun", "logrho"] = "bh2"
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()
    solver_p: Scheduler | None = None
    use_flow_sigmas: bool = True
    scheduler_type: Literal["unipc", "euler", "dmd"] = "unipc"
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"


class PyramidScheduler(Scheduler):
    """A flow in stages of rising resolution (pyramidal flow matching: Jin et al. 2024; Helios 2026). Every stage runs from sigma
    0.999 to 0 of its own path, over its share of the timesteps. By stage, `timesteps_per_stage` and `sigmas_per_stage` are its tables,
    `ori_start_sigmas` and `end_sigmas` the part of the whole flow that it covers, `start_sigmas` where it begins after the noise that makes up
    for upsampling, and `timestep_ratios` its share of the timesteps.
    """

    kind = "flow"
    paper = "Jin et al. 2024"
    _one_more = False  # whether a run ends with a jump to the data from where another step would have begun

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)
        table, borders = config.num_train_timesteps, config.stage_range
        for name in ("shift", "gamma", "stages"):
            if not config[name] > 0:
                self._refuse(name, config[name], "above 0")
        numbers = all(isinstance(b, (int, float)) for b in borders) and len(borders) > config.stages
        places = [int(b * table) for b in borders] if numbers else []
        if not numbers or places[0] < 0 or places[-1] > table or not all(a < b for a, b in itertools.pairwise(places)):
            self._refuse("stage_range", borders, f"{config.stages + 1} ascending numbers from 0 to 1")
        if config.use_dynamic_shifting and config.shift != 1:
            self._refuse("shift", config.shift, "1 with use_dynamic_shifting")
        sigmas = process.shifted(1.0 - np.linspace(1, 1 / table, table + 1), config.shift)[:0:-1].copy()
        self.sigma_max, self.sigma_min, self.gamma = float(sigmas[0]), float(sigmas[-1]), config.gamma
        levels, stages = [*sigmas.tolist(), 0.0], range(config.stages)
        self.ori_start_sigmas = {i: levels[places[i]] for i in stages}
        self.end_sigmas = {i: levels[places[i + 1]] for i in stages}
        self.start_sigmas = {i: self._renoised(self.ori_start_sigmas[i]) if i else levels[places[0]] for i in stages}
        lengths = [self.start_sigmas[i] - self.end_sigmas[i] for i in stages]
        shares = [*(sum(lengths[:i]) / sum(lengths) for i in stages), 1 - 2**-53]
        self.timestep_ratios = dict(enumerate(itertools.pairwise(shares)))
        ends = [(levels[int(a * table)] * table, levels[min(int(b * table), table - 1)] * table) for a, b in self.timestep_ratios.values()]
        spread = [np.linspace(min(high, 999), low, table + 1)[:-1] for high, low in ends]
        self.timesteps_per_stage = {i: torch.from_numpy(timesteps) for i, timesteps in enumerate(spread)}
        self.sigmas_per_stage = {i: torch.from_numpy(np.linspace(0.999, 0, table + 1)[:-1].copy()) for i in stages}
        self.sigmas = torch.from_numpy(sigmas)
        self._install(sigmas * table, None)

    def _renoised(self, sigma: float) -> float:
        """Where a stage begins: upsampling leaves correlated noise at `sigma`, and new noise makes it white (Jin et al. 2024)."""
        signal = 1 - sigma
        return 1 - signal / (math.sqrt(1 + 1 / self.gamma) * sigma + signal)

    def set_timesteps(
        self, num_inference_steps: int, stage_index: int | None = None, device: Device = None, sigmas: Any = None, mu: float | None = None,
        is_amplify_first_chunk: bool = False,
    ) -> None:  # fmt: skip
        """Lay out the steps of one stage. Of a scheduler with a single stage, `sigmas` (steps,) replace the even ones. `mu` is the shift of this
        stage, or its logarithm (as `time_shift_type` says), needed with dynamic shifting. `is_amplify_first_chunk` doubles the steps of
        schedulers that jump to the data.
        """
        config, steps = self.config, self._steps(num_inference_steps)
        table = config.num_train_timesteps
        if self._one_more:
            steps = steps * (2 if is_amplify_first_chunk else 1) + 1
        if config.stages == 1:
            if sigmas is None:
                sigmas = np.linspace(1, 1 / table, steps + 1)[:-1].astype(np.float32)
                # the shift is taken for its logarithm by the default time_shift_type
                sigmas = sigmas if config.shift == 1 else process.time_shift(config.shift, 1.0, sigmas, config.time_shift_type)
            sigmas = np.asarray(sigmas)
            timesteps = sigmas * table
        elif stage_index not in self.timesteps_per_stage:
            raise self._error("No stage.", "set_timesteps, stage_index", stage_index, f"0 to {config.stages - 1}")
        else:
            ends = (self.timesteps_per_stage[stage_index].numpy()[[0, -1]], self.sigmas_per_stage[stage_index].numpy()[[0, -1]])
            timesteps, sigmas = (np.linspace(first, last, steps) for first, last in ends)
        if self._one_more:
            timesteps, sigmas = timesteps[:-1], sigmas[:-1]
        levels = torch.from_numpy(np.append(sigmas, sigmas.dtype.type(0)))
        if config.use_dynamic_shifting:
            if mu is None:
                raise self._error("The shift of this run is missing.", "set_timesteps, mu", None, "a number", "Pass mu.")
            levels = process.time_shift(mu, 1.0, levels, config.time_shift_type)  # of tensors: their rounding near sigma 1 matters
            low, high = 0.0, float(table)
            if config.stages > 1:
                low, high = (float(bound) for bound in self.timesteps_per_stage[stage_index].aminmax())  # type: ignore[index]
            timesteps = (low + levels[:-1] * (high - low)).numpy()
        self.num_inference_steps, self.sigmas = steps, levels
        self._install(timesteps, device)

    def reset_scheduler_history(self) -> None:
        """Forget the run, but not its schedule."""
        self._restart()


class HeliosScheduler(PyramidScheduler, UniPCMultistepScheduler):  # type: ignore[misc]
    """The flow of Helios with UniPC (Zhao et al. 2023) or Euler. Stages are runs of their own; `begin_index` and the timestep that `step` is given
    are not heeded, as in the reference: steps follow one another.
    """

    Config = HeliosConfig
    _compatibles = ()
    accuracy = "2-3"
    sigma_schedule = None

    def _assemble(self, config: Any) -> None:
        super()._assemble(config.replace(solver_type="bh2") if config.solver_type in FOREIGN else config)
        config = self.config
        if config.solver_order < 1:
            self._refuse("solver_order", config.solver_order, "at least 1")
        if config.thresholding:
            self._refuse("thresholding", True, "False: flows of latents have no range")
        if config.prediction_type == "flow_prediction" and not config.predict_x0:
            self._refuse("predict_x0", False, "True with flow_prediction")
        self.flow, self.data, self._one_more = bool(config.use_flow_sigmas), config.predict_x0, config.scheduler_type == "dmd"

    def split(self, sigma: Any) -> tuple[Any, Any]:
        """(alpha, sigma), of flows with sigma above 0, so that log-SNR is finite."""
        return (1 - sigma, sigma.clamp(min=1e-8)) if self.flow else super().split(sigma)

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the solver integrates: x0, or eps."""
        if self.config.prediction_type == "flow_prediction":
            return process.X0["flow_prediction"](model_output, sample, None, self.marks[self.step_index or 0])
        return super().convert_model_output(model_output, sample)

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Timestep | None = None, sample: Tensor | None = None, generator: Generators = None,
        return_dict: bool = True,
    ) -> HeliosSchedulerOutput | tuple[Any, ...]:  # fmt: skip
        """x at the next timestep."""
        self._needs_run()
        self.step_index = 0 if self.step_index is None else self.step_index
        index, config = self._position(0), self.config
        if sample is None or config.scheduler_type == "dmd":
            raise self._error("No step can be made.", "step", None, "a sample, and another scheduler_type than 'dmd'")
        if config.scheduler_type == "euler":
            prev = (sample.float() + (self.marks[index + 1] - self.marks[index]) * model_output).to(model_output.dtype)
            self.step_index += 1
            return HeliosSchedulerOutput(prev) if return_dict else (prev,)
        if index == 0 and self.flow and self.levels[0] >= 1 and not (self.data and config.solver_type == "bh2"):
            what, fix = "Log-SNR is infinite at sigma 1.", "Pass sigmas that begin below 1, or take solver_type 'bh2' and predict_x0."
            raise self._error(what, "step", self.levels[0], "below 1", fix)
        output = self.convert_model_output(model_output, sample)
        if index > 0 and self.last_sample is not None and index - 1 not in config.disable_corrector:
            sample = self._update(index - 1, self.this_order, self.last_sample, output)
        self.model_outputs = (*self.model_outputs, output)[-config.solver_order :]
        most = len(self._numbers) - index if config.lower_order_final else config.solver_order
        self.this_order, self.last_sample = min(most, len(self.model_outputs)), sample
        if self.solver_p is None:
            prev = self._update(index, self.this_order, sample, None)
        else:
            self.solver_p = copy.copy(self.solver_p)  # its history belongs to this run
            prev = self.solver_p.step(model_output, timestep, sample)[0]
        self.step_index += 1
        fields = (prev, None, self.last_sample, self.this_order)
        return HeliosSchedulerOutput(*fields) if return_dict else fields
