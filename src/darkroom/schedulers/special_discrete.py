"""Diffusion in discrete time of single families: CogVideoX's shifted table, unCLIP's cosine, RePaint, which inpaints, and Wuerstchen's times."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
import numpy as np
import torch
from torch import Tensor
from ..config import Config as BaseConfig
from ..core.random import Generators, randn
from . import process
from .base import LARGEST_TABLE, LEADING, PREDICTIONS, Device, KarrasScheduler, Scheduler, Stepped, Timestep, options
from .ddim import DDIMScheduler
from .special import SpecialScheduler, broad

__all__ = ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "RePaintScheduler", "UnCLIPScheduler"]


class CogVideoXDDIMScheduler(DDIMScheduler, draws="no"):
    """DDIM without noise over a table whose signal-to-noise ratio is divided by `snr_shift_scale` (CogVideoX: Yang et al. 2024, after Esser et al.
    2024), and is 0 at its end with `rescale_betas_zero_snr`. The checkpoints predict v.
    `clip_sample`, and the arguments of `step` that concern noise and clipping, are accepted and mean nothing, as in the reference."""

    Config = options(
        beta_start=0.00085, beta_end=0.0120, beta_schedule=("scaled_linear", "linear", "squaredcos_cap_v2"), clip_sample=True,
        set_alpha_to_one=True, steps_offset=0, prediction_type=PREDICTIONS, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing=LEADING,
        rescale_betas_zero_snr=False, snr_shift_scale=3.0,
    )  # fmt: skip

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        config, shift = self.config, self.config.snr_shift_scale
        if not shift > 0:
            self._refuse("snr_shift_scale", shift, "above 0")
        self.betas = process.betas(*(config[name] for name in config.names()[:5]))
        if config.beta_schedule == "scaled_linear" and config.trained_betas is None:  # this one table is of double precision
            ends = (config.beta_start**0.5, config.beta_end**0.5)
            self.betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** 2
        self.alphas = 1.0 - self.betas
        bar = self.alphas.cumprod(0)
        bar = bar / (shift + (1 - shift) * bar)
        if config.rescale_betas_zero_snr:  # as process.zero_snr, of alpha bar itself
            root = bar.sqrt()
            bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        self.alphas_cumprod = bar
        self.final_alpha_cumprod = torch.tensor(1.0) if config.set_alpha_to_one else bar[0]

    def _predicted(self, out: Tensor, timestep: Timestep, x: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Alpha bar where a step begins and ends, the predicted x0, and whether the step ends at the data."""
        self._needs_run()
        t = self.number(timestep)
        before = t - self.config.num_train_timesteps // self.num_inference_steps
        bar = self.alpha_bar(t)
        x0 = process.X0[self.config.prediction_type](out, x, bar**0.5, (1 - bar) ** 0.5)
        return bar, self.alpha_bar(before), x0, before < 0

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
             generator: Generators = None, variance_noise: Tensor | None = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x at the next timestep: alpha' x0 + sigma' eps (Song et al. 2021, eq. 12 without noise), with eps out of x and x0."""
        bar, bar_prev, x0, _ = self._predicted(model_output, timestep, sample)
        kept = ((1 - bar_prev) / (1 - bar)) ** 0.5
        return self._result(return_dict, kept * sample + (bar_prev**0.5 - bar**0.5 * kept) * x0, x0)


class CogVideoXDPMScheduler(CogVideoXDDIMScheduler, accuracy="2", paper="Lu et al. 2022", draws="yes"):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, with `DPMSolverMultistepScheduler`'s midpoint form) over the same table: better than DDIM at few
    steps. The loop keeps the last prediction, and hands it back with its timestep."""

    def get_variables(self, alpha_prod_t: Tensor, alpha_prod_t_prev: Tensor,
                      alpha_prod_t_back: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
        """(h, r, lambda, lambda at the end): half log-SNRs, the step between them, and the last step's size relative to it."""
        bars = [alpha_prod_t, alpha_prod_t_prev] + ([] if alpha_prod_t_back is None else [alpha_prod_t_back])
        start, end, *back = (((bar / (1 - bar)) ** 0.5).log() for bar in bars)
        return end - start, (start - back[0]) / (end - start) if back else None, start, end

    def get_mult(self, h: Tensor, r: Tensor | None, alpha_prod_t: Tensor, alpha_prod_t_prev: Tensor,
                 alpha_prod_t_back: Tensor | None = None) -> tuple[Tensor, ...]:  # fmt: skip
        """The factors of x and, with its sign changed, of x0; then of this and the last prediction in what replaces x0 at order 2."""
        first = ((1 - alpha_prod_t_prev) / (1 - alpha_prod_t)) ** 0.5 * (-h).exp(), (-2 * h).expm1() * alpha_prod_t_prev**0.5
        return first if alpha_prod_t_back is None or r is None else (*first, 1 + 1 / (2 * r), 1 / (2 * r))

    def step(self, model_output: Tensor, old_pred_original_sample: Tensor | None, timestep: Timestep,  # type: ignore[override]
             timestep_back: Timestep | None, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False,
             generator: Generators = None, variance_noise: Tensor | None = None, return_dict: bool = False) -> Stepped:  # fmt: skip
        """x at the next timestep, and the predicted x0. `old_pred_original_sample` and `timestep_back` are the x0 and timestep of the step before,
        None at the first. The step to the data is of order 1."""
        bar, bar_prev, x0, last = self._predicted(model_output, timestep, sample)
        second, target = None if last else old_pred_original_sample, x0
        if second is not None and timestep_back is None:
            raise self._error("The timestep of the last prediction is needed.", "step, timestep_back", None)
        back = self.alpha_bar(self.number(timestep_back)) if timestep_back is not None else None
        h, r, *_ = self.get_variables(bar, bar_prev, back)
        keep, gain, *mix = self.get_mult(h, r, bar, bar_prev, back)
        noise = randn(sample.shape, generator, sample.device, sample.dtype)
        if second is not None:
            noise = randn(sample.shape, generator, sample.device, sample.dtype)  # the first draw counts, and is not used
            target = mix[0] * x0 - mix[1] * second
        spread = (1 - bar_prev) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        return self._result(return_dict, keep * sample - gain * target + spread * noise, x0)


class UnCLIPScheduler(KarrasScheduler, paper="Ho et al. 2020", draws="yes"):
    """DDPM (Ho et al. 2020, algorithm 2) over the cosine table, for Karlo's unCLIP (Ramesh et al. 2022). Runs have both ends of the table, and a
    step may end at any earlier timestep, `prev_timestep`. For other checkpoints take DDPMScheduler."""

    Config = options(
        BaseConfig, num_train_timesteps=1000, variance_type=("fixed_small_log", "learned_range"), clip_sample=True, clip_sample_range=1.0,
        prediction_type=("epsilon", "sample"), beta_schedule=("squaredcos_cap_v2",),
    )  # fmt: skip
    _compatibles = ()

    def _assemble(self, config: Any) -> None:
        Scheduler._assemble(self, config)
        self.betas = process.betas(config.num_train_timesteps, 0, 0, config.beta_schedule)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod, self.final_alpha_cumprod = self.alphas.cumprod(0), torch.tensor(1.0)
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` steps, at least 2, from the last timestep of the table to the first."""
        if (steps := self._steps(num_inference_steps)) < 2:
            raise self._error("A run has both ends of the table.", "set_timesteps, num_inference_steps", steps, "at least 2")
        self.num_inference_steps = steps
        self._install(process.spaced("linspace", steps, self.config.num_train_timesteps).round().astype("int64"), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, prev_timestep: Timestep | None = None,
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """Draw x at `prev_timestep` (the next lower one of the table if not given) from the posterior given the predicted x0 (Ho et al. 2020, eq.
        6 and 7). With "learned_range", `model_output` is (B, 2C, ...): the prediction, then the variance."""
        t, config, channels, learned = self.number(timestep), self.config, sample.shape[1], None
        before = t - 1 if prev_timestep is None else self.number(prev_timestep)
        bar, bar_prev = self.alpha_bar(t), self.alpha_bar(before)
        beta = self.betas[t] if before == t - 1 else 1 - bar / bar_prev
        alpha = self.alphas[t] if before == t - 1 else 1 - beta
        if config.variance_type == "learned_range" and model_output.shape[1] == 2 * channels:
            model_output, learned = model_output.split(channels, dim=1)
        x0 = self.limit(process.X0[config.prediction_type](model_output, sample, bar**0.5, (1 - bar) ** 0.5))
        prev = bar_prev**0.5 * beta / (1 - bar) * x0 + alpha**0.5 * (1 - bar_prev) / (1 - bar) * sample
        if t > 0:
            noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
            variance = (1 - bar_prev) / (1 - bar) * beta
            if config.variance_type == "fixed_small_log":
                deviation = variance.clamp(min=1e-20) ** 0.5
            elif learned is None:
                raise self._error(
                    "The network predicts no variance.", "step", tuple(model_output.shape), f"{2 * channels} channels with it"
                )
            else:
                share = (learned + 1) / 2
                deviation = (0.5 * (share * beta.log() + (1 - share) * variance.log())).exp()
            prev = prev + deviation * noise
        return self._result(return_dict, prev, x0)


class RePaintScheduler(KarrasScheduler, paper="Lugmayr et al. 2022", draws="yes"):
    """RePaint (Lugmayr et al. 2022, algorithm 1), which inpaints with any unconditional model: each step denoises, then puts the known part of the
    image in at the right noise level; jumps back towards noise let both parts agree. Denoising is DDIM's, with the share `eta` of the ancestral
    noise (0: none, 1: as DDPM)."""

    Config = options(
        BaseConfig, num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02,
        beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"), eta=0.0, trained_betas=(tuple[float, ...] | None, None),
        clip_sample=True,
    )  # fmt: skip
    _compatibles = ()

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self.config.trained_betas is not None:
            self.betas = torch.tensor(self.config.trained_betas, dtype=torch.float64)
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = self.alphas.cumprod(0)
        self.eta = config.eta

    def set_timesteps(self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10, device: Device = None) -> None:
        """Lay out a run of `num_inference_steps` noise levels. From every `jump_length`-th level, the run goes back by as many, so that each
        stretch is walked `jump_n_sample` times (Lugmayr et al. 2022, fig. 9). Where timesteps rise, the loop calls `undo_step`."""
        table = self.config.num_train_timesteps
        levels = self._steps(min(num_inference_steps, table) if isinstance(num_inference_steps, int) else num_inference_steps)
        if jump_length < 1 or levels * max(jump_n_sample, 1) > LARGEST_TABLE:
            got = f"jump_length {jump_length}, jump_n_sample {jump_n_sample}"
            raise self._error("Jumps that cannot be made.", "set_timesteps", got, f"length at least 1, {LARGEST_TABLE} steps at most")
        left = dict.fromkeys(range(0, levels - jump_length, jump_length), jump_n_sample - 1)
        walk = [levels - 1]
        while (level := walk[-1]) > 0 or left.get(0, 0) > 0:
            if left.get(level, 0) > 0:
                left[level] -= 1
                walk += range(level + 1, level + jump_length + 1)
            walk.append(walk[-1] - 1)
        self.num_inference_steps = levels
        self._install(np.array(walk) * (table // levels), device)

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, original_image: Tensor, mask: Tensor,  # type: ignore[override]
             generator: Generators = None, return_dict: bool = True) -> Stepped:  # fmt: skip
        """x one level down, given the predicted eps. `original_image` (B, C, H, W) is known where `mask`, 1 or 0, is 1."""
        self._needs_run()
        t = self.number(timestep)
        bar, bar_prev = self.alpha_bar(t), self.alpha_bar(t - self.config.num_train_timesteps // self.num_inference_steps)
        x0 = process.X0["epsilon"](model_output, sample, bar**0.5, (1 - bar) ** 0.5)
        x0 = x0.clamp(-1, 1) if self.config.clip_sample else x0
        noise = randn(model_output.shape, generator, model_output.device, model_output.dtype)
        std = self.eta * ((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev)) ** 0.5
        unknown = bar_prev**0.5 * x0 + (1 - bar_prev - std**2) ** 0.5 * model_output
        if t > 0 and self.eta > 0:
            unknown = unknown + std * noise
        known = bar_prev**0.5 * original_image + (1 - bar_prev) ** 0.5 * noise  # eq. 8a; the algorithm has the variance by mistake
        return self._result(return_dict, mask * known + (1.0 - mask) * unknown, x0)

    def undo_step(self, sample: Tensor, timestep: Timestep, generator: Generators = None) -> Tensor:
        """x one level up from `timestep`, through every timestep between."""
        self._needs_run()
        t, stride = self.number(timestep), self.config.num_train_timesteps // self.num_inference_steps
        if not 0 <= t <= (most := self.config.num_train_timesteps - stride):
            raise self._error("There is no level above.", "undo_step, timestep", t, f"at most {most}")
        for beta in self.betas[t : t + stride]:
            sample = (1 - beta) ** 0.5 * sample + beta**0.5 * randn(sample.shape, generator, sample.device, sample.dtype)
        return sample


class DDPMWuerstchenScheduler(SpecialScheduler, paper="Ho et al. 2020", draws="yes"):
    """DDPM (Ho et al. 2020, eq. 11) over the cosine schedule (Nichol & Dhariwal 2021, eq. 17) without a table: timesteps are times from 1 to 0,
    the end included, and the network predicts eps; for Wuerstchen and Stable Cascade (Pernias et al. 2023). `scaler` above 1 warps time towards
    noise, below 1 towards the data; `s` is the offset of the cosine."""

    Config = options(BaseConfig, scaler=1.0, s=0.008)
    _bounds = {"scaler": 0, "s": -0.5}

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        s = torch.tensor([config.s])
        self._at_0 = (torch.cos(s / (1 + s) * torch.pi * 0.5) ** 2).item()

    def _bar(self, t: Tensor, like: Tensor) -> Tensor:
        """Alpha bar at times (B,): (B, 1, ...), in [0.0001, 0.9999]."""
        scaler = self.config.scaler
        if scaler != 1:
            t = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
        s, at_0 = (torch.full((1,), value, device=t.device) for value in (self.config.s, self._at_0))  # numbers would be halves
        return broad((torch.cos((t + s) / (1 + s) * torch.pi * 0.5) ** 2 / at_0).clamp(0.0001, 0.9999), like)

    def set_timesteps(self, num_inference_steps: int | None = None, timesteps: Sequence[float] | Tensor | None = None,
                      device: Device = None) -> None:  # fmt: skip
        """Lay out a run of `num_inference_steps` steps over `num_inference_steps` + 1 times, or over the given ones, of which the last is no step."""
        if timesteps is None:
            timesteps = torch.linspace(1.0, 0.0, self._steps(num_inference_steps) + 1)
        times = np.array(timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps, np.float32)
        usable = times.ndim == 1 and len(times) > 1 and np.isfinite(times).all()
        self._ensure(usable, "No times to step between.", "set_timesteps, timesteps", times.tolist(), "two numbers at least")
        self._plan(len(times) - 1, times, device)

    def _absent(self, timestep: float) -> int:
        """The nearest, since halves round times."""
        return min(range(len(self._numbers)), key=lambda place: abs(self._numbers[place] - timestep))

    def previous_timestep(self, timestep: Tensor) -> Tensor:
        """The time after that of a batch, (B,)."""
        self._needs_run()
        place = self.index_for_timestep(timestep[0])
        self._ensure(place + 1 < len(self._numbers), "The run is over.", "step, timestep", self._numbers[place], "a timestep but the last")
        return self._timesteps[place + 1].expand(len(timestep))

    def step(self, model_output: Tensor, timestep: Timestep, sample: Tensor, generator: Generators = None,
             return_dict: bool = True) -> Stepped:  # fmt: skip
        """Draw x at the next time, from the predicted eps. `timestep` is the time of the whole batch, () or (B,)."""
        t = torch.as_tensor(timestep, device=model_output.device).reshape(-1)
        later = self.previous_timestep(torch.as_tensor(timestep).reshape(-1))
        bar, bar_prev = self._bar(t, sample), self._bar(later.to(model_output.device), sample)
        alpha = bar / bar_prev
        mean = (1 / alpha).sqrt() * (sample - (1 - alpha) * model_output / (1 - bar).sqrt())
        noise = randn(mean.shape, generator, model_output.device, model_output.dtype)
        deviation = ((1 - alpha) * (1 - bar_prev) / (1 - bar)).sqrt() * noise
        return self._result(return_dict, (mean + deviation * broad(later.to(mean) != 0, sample)).to(model_output.dtype))

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times (B,), on the device of `like` (B, ...): each (B, 1, ...)."""
        bar = self._bar(timesteps.to(like.device), like)
        return bar.sqrt(), (1 - bar).sqrt()

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps for x0 and noise (B, ...) at times (B,)."""
        return KarrasScheduler.add_noise(self, original_samples, noise, timesteps).to(original_samples.dtype)  # type: ignore[arg-type]
