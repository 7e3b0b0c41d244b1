"""Sampling of videos from small to large in one run of a flow, in many steps or, distilled, in few."""

from __future__ import annotations
import itertools
import math
from dataclasses import dataclass
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from ..outputs import Output
from . import process
from .base import Device, Scheduler, Timestep, options
from .special import SpecialScheduler
from .unipc_multistep import FOREIGN, UniPCMultistepScheduler

__all__ = ["HeliosDMDScheduler", "HeliosScheduler", "HeliosSchedulerOutput", "PyramidScheduler"]

FLOW, SHIFTS = ("flow_prediction",), ("linear", "exponential")
STAGES = {"num_train_timesteps": 1000, "shift": 1.0, "stages": 3, "stage_range": (tuple[float, ...], (0, 1 / 3, 2 / 3, 1)), "gamma": 1 / 3}


@dataclass
class HeliosSchedulerOutput(Output):
    """The sample at the next timestep; of UniPC also the corrected sample that it began at, and its order."""

    prev_sample: Tensor
    model_outputs: Tensor | None = None
    last_sample: Tensor | None = None
    this_order: int | None = None


class PyramidScheduler(SpecialScheduler, kind="flow", paper="Jin et al. 2024"):
    """A flow in stages of rising resolution (pyramidal flow matching: Jin et al. 2024; Helios 2026): `stage_range` splits its time into `stages`,
    each at twice the resolution of the last, and `gamma` is the correlation of the noise that joins two. Every stage runs from sigma 0.999 to 0
    of its own path, over its share of the timesteps. `shift` > 1 moves all steps towards noise; `use_dynamic_shifting` takes it from the call.
    By stage, `timesteps_per_stage` and `sigmas_per_stage` are its tables, `ori_start_sigmas` and `end_sigmas` the part of the whole flow that it
    covers, `start_sigmas` where it begins after the noise that makes up for upsampling, and `timestep_ratios` its share of the timesteps."""

    _bounds = {"shift": 0, "gamma": 0, "stages": 0}
    _one_more = False  # whether a run ends with a jump to the data from where another step would have begun

    def _assemble(self, config: Any) -> None:
        SpecialScheduler._assemble(self, config)
        table, borders, stages = config.num_train_timesteps, config.stage_range, range(config.stages)
        numbers = all(isinstance(b, (int, float)) for b in borders) and len(borders) > config.stages
        places = [int(b * table) for b in borders] if numbers else []
        if not numbers or places[0] < 0 or places[-1] > table or not all(a < b for a, b in itertools.pairwise(places)):
            self._refuse("stage_range", borders, f"{config.stages + 1} ascending numbers from 0 to 1")
        if config.use_dynamic_shifting and config.shift != 1:
            self._refuse("shift", config.shift, "1 with use_dynamic_shifting")
        sigmas = process.shifted(1.0 - np.linspace(1, 1 / table, table + 1), config.shift)[:0:-1].copy()
        self.sigma_max, self.sigma_min, self.gamma = float(sigmas[0]), float(sigmas[-1]), config.gamma
        levels = [*sigmas.tolist(), 0.0]
        self.ori_start_sigmas = {i: levels[places[i]] for i in stages}
        self.end_sigmas = {i: levels[places[i + 1]] for i in stages}
        self.start_sigmas = {i: self._renoised(sigma) if i else sigma for i, sigma in self.ori_start_sigmas.items()}
        lengths = [self.start_sigmas[i] - self.end_sigmas[i] for i in stages]
        shares = [*(sum(lengths[:i]) / sum(lengths) for i in stages), 1 - 2**-53]
        self.timestep_ratios = dict(enumerate(itertools.pairwise(shares)))
        ends = [(levels[int(a * table)] * table, levels[min(int(b * table), table - 1)] * table) for a, b in self.timestep_ratios.values()]
        evenly = lambda high, low: torch.from_numpy(np.linspace(high, low, table + 1)[:-1].copy())  # noqa: E731
        self.timesteps_per_stage = {i: evenly(min(high, 999), low) for i, (high, low) in enumerate(ends)}
        self.sigmas_per_stage = {i: evenly(0.999, 0) for i in stages}
        self.sigmas = torch.from_numpy(sigmas)
        self._install(sigmas * table, None)

    def _renoised(self, sigma: float) -> float:
        """Where a stage begins: upsampling leaves correlated noise at `sigma`, and new noise makes it white (Jin et al. 2024)."""
        signal = 1 - sigma
        return 1 - signal / (math.sqrt(1 + 1 / self.gamma) * sigma + signal)

    def set_timesteps(self, num_inference_steps: int, stage_index: int | None = None, device: Device = None, sigmas: Any = None,
                      mu: float | None = None, is_amplify_first_chunk: bool = False) -> None:  # fmt: skip
        """Lay out the steps of one stage. Of a scheduler with a single stage, `sigmas` (steps,) replace the even ones. `mu` is the shift of this
        stage, or its logarithm (as `time_shift_type` says), needed with dynamic shifting. `is_amplify_first_chunk` doubles the steps of
        schedulers that jump to the data."""
        config, steps, table = self.config, self._steps(num_inference_steps), self.config.num_train_timesteps
        stages: dict[Any, Tensor] = self.timesteps_per_stage
        if self._one_more:
            steps = steps * (1 + bool(is_amplify_first_chunk)) + 1
        if config.stages == 1:
            if sigmas is None:
                sigmas = np.linspace(1, 1 / table, steps + 1)[:-1].astype(np.float32)
                if config.shift != 1:  # is taken for its logarithm by the default time_shift_type
                    sigmas = process.time_shift(config.shift, 1.0, sigmas, config.time_shift_type)
            sigmas = np.asarray(sigmas)
            timesteps = sigmas * table
        else:
            self._ensure(stage_index in stages, "No stage.", "set_timesteps, stage_index", stage_index, f"0 to {config.stages - 1}")
            ends = (tables[stage_index].numpy()[[0, -1]] for tables in (stages, self.sigmas_per_stage))  # type: ignore[index]
            timesteps, sigmas = (np.linspace(first, last, steps) for first, last in ends)
        if self._one_more:
            timesteps, sigmas = timesteps[:-1], sigmas[:-1]
        levels = torch.from_numpy(np.append(sigmas, sigmas.dtype.type(0)))
        if config.use_dynamic_shifting:
            if mu is None:
                raise self._error("The shift of this run is missing.", "set_timesteps, mu", None, "a number", "Pass mu.")
            levels = process.time_shift(mu, 1.0, levels, config.time_shift_type)  # of tensors: their rounding near sigma 1 matters
            low, high = (float(bound) for bound in (stages[stage_index].aminmax() if config.stages > 1 else (0, table)))
            timesteps = (low + levels[:-1] * (high - low)).numpy()
        self.sigmas = levels.to(device) if type(self)._one_more else levels  # on the CPU where every step reads them
        self._plan(steps, timesteps, device)

    def reset_scheduler_history(self) -> None:
        """Forget the run, but not its schedule."""
        self._restart()


class HeliosScheduler(PyramidScheduler, UniPCMultistepScheduler, accuracy="2-3"):  # type: ignore[misc]
    """The flow of Helios, with the options of `UniPCMultistepScheduler` (Zhao et al. 2023); `scheduler_type` "euler" steps along the flow instead,
    and "dmd" only lays out runs for `HeliosDMDScheduler`. Stages are runs of their own; `begin_index` and the timestep that `step` is given are
    not heeded, as in the reference: steps follow one another."""

    Config = options(
        BaseConfig, **STAGES, thresholding=False, prediction_type=(*FLOW, "epsilon", "sample", "v_prediction"), solver_order=2, predict_x0=True,
        solver_type=("bh2", "bh1", "midpoint", "heun", "logrho"), lower_order_final=True, disable_corrector=(tuple[int, ...], ()),
        solver_p=(Scheduler | None, None), use_flow_sigmas=True, scheduler_type=("unipc", "euler", "dmd"), use_dynamic_shifting=False,
        time_shift_type=SHIFTS[::-1],
    )  # fmt: skip
    _compatibles = ()
    _bounds = {**PyramidScheduler._bounds, "solver_order": 0}
    sigma_schedule = None

    def _assemble(self, config: Any) -> None:
        super()._assemble(config.replace(solver_type="bh2") if config.solver_type in FOREIGN else config)
        config = self.config
        if config.thresholding:
            self._refuse("thresholding", True, "False: flows of latents have no range")
        if config.prediction_type == "flow_prediction" and not config.predict_x0:
            self._refuse("predict_x0", False, "True with flow_prediction")
        self.flow, self.data, self._one_more = bool(config.use_flow_sigmas), config.predict_x0, config.scheduler_type == "dmd"

    @property
    def levels(self) -> list[float]:
        """The sigmas as numbers, above 0 as in `split`: the last step is of any order."""
        return self._once("levels", lambda: self._sigmas.clamp(min=1e-8).tolist())

    def split(self, sigma: Any) -> tuple[Any, Any]:
        """(alpha, sigma), of flows with sigma above 0, so that log-SNR is finite."""
        return (1 - sigma, sigma.clamp(min=1e-8)) if self.flow else super().split(sigma)

    def convert_model_output(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the solver integrates: x0, or eps."""
        if self.config.prediction_type == "flow_prediction":
            return process.X0["flow_prediction"](model_output, sample, None, self.marks[self.step_index or 0])
        return super().convert_model_output(model_output, sample)

    def step(self, model_output: Tensor, timestep: Timestep | None = None, sample: Tensor | None = None,  # type: ignore[override]
             generator: Generators = None, return_dict: bool = True) -> HeliosSchedulerOutput | tuple[Any, ...]:  # fmt: skip
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
        prev = super().step(model_output, timestep, sample)[0]  # type: ignore[arg-type]
        fields = (prev, None, self.last_sample, self.this_order)
        return HeliosSchedulerOutput(*fields) if return_dict else fields


class HeliosDMDScheduler(PyramidScheduler, accuracy="-", paper="Yin et al. 2024", draws="yes"):
    """For the distilled checkpoints of Helios (distribution matching: Yin et al. 2024): each step predicts x0 and puts the noise that the stage
    began with back in, at the next level. The network predicts the velocity, so `prediction_type` and `use_flow_sigmas` have one value."""

    Config = options(BaseConfig, **STAGES, prediction_type=FLOW, use_flow_sigmas=True, use_dynamic_shifting=False, time_shift_type=SHIFTS)
    _one_more = True

    def _level(self, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """The sigma of the nearest timestep, for each of (B,): (B, 1, 1, 1, 1)."""
        return sigmas[(timesteps - timestep[:, None]).abs().argmin(1)].reshape(-1, 1, 1, 1, 1)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - sigma) x0 + sigma eps for x0 and noise (B, C, F, H, W) at timesteps (B,) of the schedule (`timesteps`, `sigmas`)."""
        sigma = self._level(timestep, sigmas.to(noise.device), timesteps.to(noise.device))
        return ((1 - sigma) * original_samples + sigma * noise).type_as(noise)

    def convert_flow_pred_to_x0(self, flow_pred: Tensor, xt: Tensor, timestep: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
        """x0 from the velocity, in double precision inside; the arguments are those of `add_noise`."""
        out, x, sigmas, timesteps = (tensor.to(flow_pred.device, torch.float64) for tensor in (flow_pred, xt, sigmas, timesteps))
        return process.X0["flow_prediction"](out, x, None, self._level(timestep, sigmas, timesteps)).to(flow_pred.dtype)

    def step(self, model_output: Tensor, timestep: Timestep | None = None, sample: Tensor | None = None, generator: Generators = None,
             return_dict: bool = True, cur_sampling_step: int = 0, dmd_noisy_tensor: Tensor | None = None, dmd_sigmas: Tensor | None = None,
             dmd_timesteps: Tensor | None = None, all_timesteps: Tensor | None = None) -> HeliosSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """x after step `cur_sampling_step` of `all_timesteps`, or at the last of them x0, for videos (B, C, F, H, W). `dmd_noisy_tensor` is the
        noise that is put back, drawn if not given; `dmd_sigmas` and `dmd_timesteps` are the schedule, and as `all_timesteps` this object's if
        not given. Timesteps are truncated to whole numbers, and the nearest of the schedule counts."""
        self._needs_run()
        if sample is None or timestep is None:
            raise self._error("A sample and its timestep are needed.", "step", None)
        steps, rows = self.timesteps if all_timesteps is None else all_timesteps, model_output.shape[:1]
        schedule = (self.sigmas if dmd_sigmas is None else dmd_sigmas, self.timesteps if dmd_timesteps is None else dmd_timesteps)
        now = torch.full(rows, int(self.number(timestep)), device=model_output.device)
        prev = self.convert_flow_pred_to_x0(model_output, sample, now, *schedule)
        if cur_sampling_step < len(steps) - 1:
            if dmd_noisy_tensor is None:
                dmd_noisy_tensor = randn(sample.shape, generator, sample.device, sample.dtype)
            later = torch.full(rows, int(self.number(steps[cur_sampling_step + 1])), device=model_output.device)
            prev = self.add_noise(prev, dmd_noisy_tensor, later, *schedule)
        return HeliosSchedulerOutput(prev) if return_dict else (prev,)
