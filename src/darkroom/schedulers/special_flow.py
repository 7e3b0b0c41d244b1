"""Flows of single families: of distilled networks, in few steps, and those whose time rises from noise to data."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any, Literal
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from . import process
from .base import Device, Stepped, Timestep, options
from .flow import FlowScheduler
from .flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from .special import SpecialScheduler, broad

__all__ = [
    "FlowMapEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler", "PiflowScheduler", "RFD4ProteinaScheduler"
]  # fmt: skip

CLOSE = 1e-3  # how near a timestep of a flow map's schedule is taken for it
START = 1e-3  # where full runs of RFD4 begin, since the score has no value at time 0


class FlowMapEulerDiscreteScheduler(FlowScheduler, paper="Boffi et al. 2025"):
    """For networks that predict the mean velocity from time t to an earlier r (Boffi et al. 2025; MeanFlow, Geng et al. 2025): one step goes
    the whole way, x_r = x_t - (t - r) out, and more steps improve it. `timesteps` and `sigmas` are float64, as the step is inside."""

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.set_timesteps(config.num_train_timesteps)

    def _widest(self, device: Device) -> torch.dtype:
        """The widest floats that a device has."""
        return torch.float32 if torch.device(device or "cpu").type in ("mps", "npu") else torch.float64

    def apply_shift(self, sigmas: Tensor) -> Tensor:
        """The sigmas, moved by the configured shift."""
        return sigmas if self.shift == 1 else process.shifted(sigmas, self.shift)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None,
                      timesteps: Sequence[float] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps`, through `sigmas` or at `timesteps`; all are shifted as configured."""
        steps, table = self._steps(num_inference_steps, sigmas=sigmas, timesteps=timesteps), self.config.num_train_timesteps
        given, exact = timesteps if sigmas is None else sigmas, torch.float64
        levels = torch.linspace(1, 0, steps + 1, dtype=exact)[:-1] if given is None else torch.as_tensor(given, dtype=exact).cpu()
        levels = self.apply_shift(levels / table if sigmas is None and given is not None else levels)
        self.sigmas, self.num_inference_steps = torch.cat([levels, levels.new_zeros(1)]), steps
        self._install((levels * table).to(self._widest(device)).numpy(), device)

    def index_for_timestep(self, timestep: Timestep) -> int | None:  # type: ignore[override]
        """The position of the nearest timestep, of a batch that of its first; None where none is near."""
        value = self.number(timestep if not isinstance(timestep, Tensor) or timestep.numel() == 1 else timestep.flatten()[0])
        if value in self._places:
            return self._places[value]
        distances = np.abs(np.asarray(self._numbers, dtype=np.float32) - np.float32(value))
        return int(distances.argmin()) if distances.min() <= CLOSE else None

    def _sigma(self, timestep: Timestep, place: int | None, like: Tensor) -> Any:
        """The sigma of a timestep () or (B,): that of its place in the schedule, or its own."""
        if place is not None:
            return self.levels[place]
        own = torch.as_tensor(timestep)
        sigma = (own.to(self.sigmas.dtype) if isinstance(timestep, Tensor) else own) / self.config.num_train_timesteps
        return broad(sigma.to(like), like)

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor | None = None) -> Tensor:
        """(1 - sigma) x0 + sigma eps for data and noise (B, ...) at any timesteps (B,) or (1,), in their dtype."""
        sigma = broad(torch.as_tensor(timestep).to(sample) / self.config.num_train_timesteps, sample)
        return sigma * self._noise(noise) + (1 - sigma) * sample

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, r_timestep: Timestep | None = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at `r_timestep`, or at the next timestep; both may be any, and one for each row, outside the schedule."""
        place = self.index_for_timestep(timestep)
        if self.step_index is None:
            self.step_index = (place or 0) if self.begin_index is None else self.begin_index
        if r_timestep is None and place is None:
            raise self._error("Where this step ends is not known.", "step, r_timestep", None, "a timestep, for one outside the schedule")
        x = sample.to(self._widest(sample.device))
        t = self._sigma(timestep, place, x)
        r = self.levels[place + 1] if r_timestep is None else self._sigma(r_timestep, self.index_for_timestep(r_timestep), x)  # type: ignore[operator]
        return self._result(return_dict, (x - (t - r) * model_output.to(x)).to(model_output.dtype))


class LTXEulerAncestralRFScheduler(FlowScheduler, paper="ComfyUI; LTX-Video", draws="optional"):
    """Step below the next sigma, then add noise up to it, on a rectified flow (ComfyUI, sample_euler_ancestral_RF; LTX-Video). `eta` is the share
    of the way that noise has, 0 (Euler) to 1, and `s_noise` its standard deviation. For few steps of distilled video models. The configuration
    of a FlowMatchEulerDiscreteScheduler says how a run is shifted that is not given by its sigmas."""

    Config = options(BaseConfig, num_train_timesteps=1000, eta=1.0, s_noise=1.0)  # type: ignore[assignment]
    _compatibles = ("FlowMatchEulerDiscreteScheduler",)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | Tensor | None = None,
                      timesteps: Sequence[float] | Tensor | None = None, mu: float | None = None, **kwargs: object) -> None:  # fmt: skip
        """Lay out a run through `sigmas`, the end with them, or else of `num_inference_steps`, shifted by `mu`. Without sigmas, `timesteps` are
        taken for sigmas, as in the reference; other options are accepted and have no effect."""
        if sigmas is None and timesteps is None:
            base = FlowMatchEulerDiscreteScheduler.from_config(self.config)
            base.set_timesteps(num_inference_steps, mu=mu)
            self.sigmas, self.num_inference_steps = base.sigmas, base.num_inference_steps
            return self._install(base.timesteps.numpy(), device)
        levels = torch.as_tensor(timesteps if sigmas is None else sigmas, dtype=torch.float32).cpu()
        if levels.ndim != 1 or len(levels) < 2:
            raise self._error("Sigmas that make no run.", "set_timesteps, sigmas", tuple(levels.shape), "a row of 2 or more, with the end")
        self.sigmas, self.num_inference_steps = levels, len(levels) - 1
        return self._install((levels * self.config.num_train_timesteps).numpy().astype(np.float32), device)

    def _coefficients(self) -> list[tuple[float, ...]]:
        """For every step: down / sigma, the factor of its result, and the noise's deviation."""
        sigma, end = self.sigmas[:-1], self.sigmas[1:]
        down = end * (1 + (end / sigma - 1) * self.config.eta)
        alpha, alpha_down = 1 - end, 1 - down
        std = (end**2 - down**2 * alpha**2 / (alpha_down**2 + 1e-12)).clamp(min=0).sqrt()
        return list(zip(*(values.tolist() for values in (down / sigma, alpha / (alpha_down + 1e-12), std))))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next sigma, in float32 inside; at the end of the schedule, x itself."""
        self._needs_run()
        last = len(self.sigmas) - 1
        if self.step_index == last or (self.step_index is None and self._position(timestep) == last):
            self.step_index = last - 1  # a schedule with its end in it has a timestep more than steps
            return self._result(return_dict, sample)
        sigma, sigma_next = self._ends(timestep)
        x = sample.float()
        prev = self.x0(model_output.float(), x, sigma)
        if abs(sigma_next) >= 1e-8:
            share, factor, std = self._once("coefficients", self._coefficients)[self._position(timestep)]
            prev = share * x + (1 - share) * prev
            if self.config.eta > 0 and self.config.s_noise > 0:
                prev = factor * prev + randn(x.shape, generator, x.device, x.dtype) * std * self.config.s_noise
        return self._result(return_dict, prev.to(sample.dtype))


class PiflowScheduler(SpecialScheduler, kind="flow", accuracy="-", paper="Chen et al. 2025"):
    """pi-Flow (Chen et al. 2025), for distilled flows: the network predicts velocities at `n_grid` times at once, (B, ..., n_grid x C) with the
    channels last. x0 between them is linear in time, and Euler's method follows it in many small steps. All of these are linear in what the
    network predicted, so a whole step is x - sigma (weights . predictions), with weights that the schedule alone decides."""

    Config = options(
        BaseConfig, num_train_timesteps=1000, shift=5.0, n_grid=10, eps=1e-6, final_step_size_scale=0.5, num_policy_substeps=128
    )
    _bounds = {"shift": 0, "n_grid": 1, "eps": 0, "final_step_size_scale": 0, "num_policy_substeps": 0}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if config.final_step_size_scale > 1:
            self._refuse("final_step_size_scale", config.final_step_size_scale, "at most 1")
        self.sigmas = self._weights = torch.empty(0)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None, sigmas: Sequence[float] | None = None,
                      mu: float | None = None, timesteps: Sequence[float] | None = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps. The others are refused: distilled networks know one schedule."""
        for name, value in {"sigmas": sigmas, "mu": mu, "timesteps": timesteps}.items():
            self._ensure(value is None, "A distilled network knows one schedule.", f"set_timesteps, {name}", value, "num_inference_steps")
        config, steps = self.config, self._steps(num_inference_steps)
        times = 1 - np.arange(steps, dtype=np.float32) * (1 / (steps - (1 - config.final_step_size_scale)))
        levels = process.shifted(times, config.shift)
        self.sigmas = torch.from_numpy(np.append(levels, np.float32(0)))
        ends = [*times[1:], np.float32(config.eps)]
        weights = [self._policy(*step) for step in zip(levels, times, ends)]
        self._weights = torch.tensor(np.stack(weights), dtype=torch.float32, device=device)  # (steps, n_grid)
        self._plan(steps, levels * config.num_train_timesteps, device)

    def _policy(self, sigma: Any, time: Any, end: Any) -> np.ndarray:
        """The weights (n_grid,) of the velocities in a step. In float32 where time is counted: the rounding of the last small sigma matters."""
        config, least, last = self.config, np.float32(self.config.eps), self.config.n_grid - 1
        start = process.shifted(sigma, 1 / config.shift)
        target = max(start - (time - end), np.float32(0))
        size, count = max(start - target, least), max(int(np.rint((time - end) * np.float32(config.num_policy_substeps))), 1)
        substep, first = (time - end) / np.float32(count), sigma
        weights = np.zeros(config.n_grid)  # of the x0s; what is left of 1 is x's
        for _ in range(count):
            place = np.clip((process.shifted(sigma, 1 / config.shift) - target) / size, np.float32(0), np.float32(1)) * np.float32(last)
            left = min(int(place), last - 1)
            time = max(time - substep, np.float32(0))
            sigma_next = process.shifted(time, config.shift)
            kept = 1 + (float(sigma_next) - float(sigma)) / max(float(sigma), config.eps)
            weights *= kept
            weights[left : left + 2] += (1 - kept) * np.array([left + 1 - place, place - left], dtype=np.float64)
            sigma = sigma_next
        return weights * float(first)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, for a sample (B, ..., C) and `model_output` (B, ..., n_grid x C), in float32 inside."""
        self._no_position(timestep)
        grid = self.config.n_grid
        if model_output.shape != (expected := (*sample.shape[:-1], grid * sample.shape[-1])):
            raise self._error("Not one prediction for each grid point.", "step, model_output", tuple(model_output.shape), expected)
        weights = self._weights[self._position(timestep)].to(sample.device)
        velocity = torch.einsum("...gc,g->...c", model_output.float().unflatten(-1, (grid, sample.shape[-1])), weights)
        return self._result(return_dict, (sample.float() - velocity).to(sample.dtype))


class MiniMaxH3Scheduler(SpecialScheduler, kind="flow", paper="Liu et al. 2023"):
    """Euler's method for the flow of MiniMax-H3 (Liu et al. 2023), whose conventions are its own: the network predicts x0 - eps, timesteps are t
    = 1 - sigma, from noise (0) to data (1), and the final 0 is one of the `num_inference_steps` sigmas, so a run has one step less. `shift` > 1
    moves the steps towards noise: the checkpoints have 12 for video and 3 for audio, with a scheduler for each."""

    Config = options(BaseConfig, shift=12.0)
    _bounds = {"shift": 0}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.shift = float(config.shift)
        self.sigmas = self._marks = torch.empty(0)

    def set_shift(self, shift: float) -> None:
        """The shift of the runs to come, instead of the configured one."""
        self._ensure(shift > 0, "No shift.", "set_shift", shift, "above 0")
        self.shift = float(shift)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Device = None,
                      sigmas: Sequence[float] | Tensor | None = None) -> None:  # fmt: skip
        """Lay out a run over `num_inference_steps` shifted sigmas from 1 to 0, less those that float32 cannot tell apart, or over these `sigmas`."""
        if sigmas is None:
            steps = self._steps(num_inference_steps)
            self._ensure(steps > 1, "Two sigmas make a step.", "set_timesteps, num_inference_steps", steps, "at least 2")
            levels = process.shifted(torch.linspace(1.0, 0.0, steps), self.shift).unique_consecutive()
        else:
            levels = torch.as_tensor(sigmas, dtype=torch.float32).flatten().cpu()
            falls = len(levels) > 1 and (levels.diff() < 0).all() and levels[-1] == 0
            self._ensure(falls, "No way to the data.", "set_timesteps, sigmas", levels.tolist(), "two or more, falling to 0")
        self.sigmas, self._marks = levels.to(device), levels  # the second stays on the CPU, where reading it waits for no device
        self._plan(len(levels) - 1, (1 - levels[:-1]).numpy(), device)

    def scale_noise(self, sample: Tensor, timestep: Timestep, noise: Tensor) -> Tensor:
        """t x0 + (1 - t) eps, at any t from 0 to 1, () or (B,)."""
        t = broad(torch.as_tensor(timestep).to(sample), sample)
        return t * sample + (1 - t) * noise

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, return_dict: bool = True) -> Stepped:
        """x at the next timestep, r x + (1 - r) x0 with r the ratio of the sigmas, in float32 for halves."""
        self._no_position(timestep)
        index = self._position(timestep)
        # sigma out of the timestep differs from that of the schedule by rounding, and both have their place
        x0 = sample + (1 - broad(torch.as_tensor(timestep).to(sample), sample)) * model_output
        wide = torch.float32 if sample.dtype in (torch.float16, torch.bfloat16) else sample.dtype
        now, later = self._marks[index : index + 2].to(wide).unbind()
        prev = later / now * sample.to(wide) + (1 - later / now) * x0.to(wide)
        return self._result(return_dict, prev.to(sample.dtype))


class RFD4ProteinaScheduler(SpecialScheduler, kind="flow", paper="Geffner et al. 2025", draws="optional"):
    """The sampler of RFD4-Proteina (2026; after La-Proteina: Geffner et al. 2025) for one kind of its states, (B, N, D): an SDE with the marginals
    of the flow x = t x0 + (1 - t) eps, whose score is scaled as if the data were sharper (temporal score rescaling: Xu et al. 2025).
    `schedule_mode` spaces the times and `noise_mode` shapes the noise over them. `tsr_k` is how far the temperature falls, and `tsr_sigma` how
    early. The last `tail_steps` steps are `tail_step_multiplier` times finer. No noise is drawn below `t_lim_ode_below` and above `t_lim_ode`."""

    Config = options(
        BaseConfig, schedule_mode=Literal["log", "power"], noise_mode=Literal["1/t", "tan"], tsr_k=float, tsr_sigma=float, tail_steps=10,
        tail_step_multiplier=2, t_lim_ode=0.95, t_lim_ode_below=0.02,
    )  # fmt: skip
    _bounds = {"tsr_k": 0, "tail_steps": -1, "tail_step_multiplier": -1}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if config.tail_steps and config.tail_step_multiplier < 2:
            self._refuse("tail_step_multiplier", config.tail_step_multiplier, "above 1")

    def _times(self, steps: int) -> Tensor:
        """Times of a whole run, (steps + 1,): of a finer one, every `tail_step_multiplier`-th, and all in the tail."""
        fine, tail = self.config.tail_step_multiplier, self.config.tail_steps
        if not tail:
            return self._evenly(steps)
        coarse, least = steps - (fine - 1) * tail, f"at least {tail * fine}: the tail alone has as many"
        self._ensure(coarse >= tail, "Too few steps for the tail.", "set_timesteps, num_inference_steps", steps, least)
        times, begin = self._evenly(coarse * fine), (coarse - tail) * fine
        return torch.cat([times[:begin:fine], times[begin:]])

    def _evenly(self, steps: int) -> Tensor:
        """Times in equal steps of their square root, or of the logarithm of what is left."""
        if self.config.schedule_mode == "power":
            return torch.linspace(START**0.5, 1, steps + 1) ** 2
        times = 1 - torch.logspace(-2, START, steps + 1).flip(0)
        times = times - (times.min() - START)
        return times / times.max()

    def _sharpening(self, t: Tensor) -> Tensor:
        """The factor of the score at times t."""
        snr, sigma = t**2 / (1 - t) ** 2, self.config.tsr_sigma
        return (snr * sigma**2 + 1) / (snr * sigma**2 / self.config.tsr_k + 1)

    def set_timesteps(self, num_inference_steps: int, device: Device = None, start_time: float | None = None) -> None:
        """Lay out a run of `num_inference_steps` steps, over all times or from about `start_time`, in [0, 1), with the spacing of a whole run."""
        steps = whole = self._steps(num_inference_steps)
        if start_time is not None:
            self._ensure(0 <= start_time < 1, "No time to start at.", "set_timesteps, start_time", start_time, "from 0 to below 1")
            dense = max(steps * 100, 1000)
            left = int((self._times(dense) >= float(start_time) - 1e-6).sum())
            whole = round(steps * dense / max(left - 1, 1))
        times = self._times(whole)
        before = times[:-1].clamp(0, 1 - 1e-5)
        if self.config.noise_mode == "tan":
            angle = (1 - before) * torch.pi / 2
            noise = ((torch.pi / 2) * torch.sin(angle) / (torch.cos(angle) + 1e-2)).clamp(min=0)
        else:
            noise = 1 / (before + 1e-2)
        noise = noise / self._sharpening(times[:-1]) ** 2  # in the drift and in the noise
        self._marks, self._noise = times[-(steps + 1) :], noise[-steps:]
        self._plan(steps, self._marks[:-1].numpy(), device)
        self.step_index = 0

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Timestep) -> Tensor:
        """t x0 + (1 - t) eps for x0 and noise (B, N, D) at times () or (B,), in [0, 1)."""
        t = torch.as_tensor(timesteps).to(original_samples)
        if t.ndim > 1 or (t.ndim and len(t) != len(original_samples)) or (t.device.type == "cpu" and not ((t >= 0) & (t < 1)).all()):
            raise self._error("No times of these samples.", "add_noise, timesteps", t.tolist(), "in [0, 1), one or one for each")
        t = broad(t, noise)
        return (1 - t) * noise + t * original_samples

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, emit_mask: Tensor,  # type: ignore[override]
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next time, from the velocity x0 - eps; 0 where `emit_mask` (B, N) is False. `timestep` is the next item of `timesteps`."""
        self._needs_run()
        index = self._position(timestep)
        own, due = self.number(timestep), self._numbers[index]
        self._ensure(np.float32(own) == np.float32(due), "Steps follow one another.", "step, timestep", own, due)
        shown, t, g, limits = emit_mask[..., None], self._marks[index], self._noise[index], self.config
        if t == 0:
            return self._result(return_dict, sample * shown)
        wide = torch.promote_types(sample.dtype, torch.float32)
        x, v = sample.to(wide), model_output.to(wide)
        score = (t * v - x) / (1 - t) * self._sharpening(t)
        v, dt = (x + (1 - t) * score) / t, self._marks[index + 1] - t
        change = v * dt
        if not (t > limits.t_lim_ode or t < limits.t_lim_ode_below):
            noise = randn(sample.shape, generator, sample.device, sample.dtype)
            change = (v + g * score) * dt + torch.sqrt(2 * g * dt) * noise
        return self._result(return_dict, (x + change) * shown)
