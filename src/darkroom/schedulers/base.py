"""The bases of schedulers: configuration, files, the run's position, and the table of a discrete-time process."""

from __future__ import annotations
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, get_args
import numpy as np
import torch
from torch import Tensor
from .. import schedulers
from ..checkpoints.files import PathLike, read_json
from ..checkpoints.hub import HUB_OPTIONS, locate
from ..checkpoints.save import write_text_atomic
from ..config import Config, Configurable, fits, hints_of
from ..errors import ConfigError, InputError
from ..outputs import Output
from . import process

__all__ = ["Device", "KarrasScheduler", "Scheduler", "SchedulerOutput", "SigmaScheduler", "Stepped", "Timestep", "options"]

Device = torch.device | str | None
Timestep = Tensor | float
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
LEADING, LINSPACE = ("leading", "linspace", "trailing"), ("linspace", "leading", "trailing")  # the default spacing first
LARGEST_TABLE = 1_000_000  # a file may ask for any number; this bounds what it costs


@dataclass
class SchedulerOutput(Output):
    """One step's result: the sample at the next timestep, and the x0 that was predicted on the way where the method has one."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


Stepped = SchedulerOutput | tuple[Tensor, ...]  # what `step` returns


class Scheduler(Configurable):
    """Timesteps of a run, and one step of it: `set_timesteps(n)`, then `step(out, t, x).prev_sample` for each t of `timesteps`.
    `step` takes the network's output and the sample, (B, C, ...) both, and an item of `timesteps`; a `generator` (or one for each row) makes
    its noise, and `return_dict=False` gives a tuple. It replaces attributes and never changes them in place: `copy.copy(scheduler)` is an
    independent run over the same configuration and tables.
    `timesteps` descend, (steps,), on the device given to `set_timesteps`; before, they are the whole table. `init_noise_sigma` is the standard
    deviation of the noise that a run starts from, and `order` the network evaluations per step of the schedule. `step_index` is the position
    of the next step in `timesteps`, once the first was asked for, and `begin_index` where the run starts, if `set_begin_index` said so.
    """

    config_name: ClassVar[str] = "scheduler_config.json"
    order: ClassVar[int] = 1
    init_noise_sigma: float | Tensor = 1.0
    num_inference_steps: int | None = None

    def _assemble(self, config: Config) -> None:
        """Check the configuration, then build tables and the timesteps that hold before `set_timesteps`."""
        self.config = config
        hints = hints_of(type(config))
        for name in config.names():
            value, hint = config[name], hints[name]
            no_number = isinstance(value, numbers.Real) and not abs(value) < 1e308 and value != getattr(type(config), name)  # type: ignore[operator]
            if no_number or not fits(value, hint):
                self._refuse(name, value, ", ".join(getattr(a, "__name__", str(a)) for a in get_args(hint)) or hint.__name__)
        if not 1 <= config["num_train_timesteps"] <= LARGEST_TABLE:
            self._refuse("num_train_timesteps", config["num_train_timesteps"], f"1 to {LARGEST_TABLE}")
        self._restart()

    def _refuse(self, name: str, got: object, expected: object) -> NoReturn:
        where = f"{type(self).__name__}, option {name}"
        raise ConfigError("An option with a value that has no meaning.", where=where, got=got, expected=expected)

    def _error(self, what: str, where: str, got: object, expected: object = None, fix: str | None = None) -> InputError:
        return InputError(what, where=f"{type(self).__name__}.{where}", got=got, expected=expected, fix=fix)

    @classmethod
    def from_pretrained(cls, path: PathLike, subfolder: str | None = None, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Load from a folder with `scheduler_config.json` (of this or another class), that file itself, or a hub id; `subfolder` is the
        component's inside it, usually "scheduler". `overrides` change options, and with `return_unused_kwargs` those that are none of this class
        are returned too; `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` go to the hub.
        Raises CheckpointError for a folder or file that cannot be used, ConfigError for a value in it that has no meaning.
        """
        hub = {name: overrides.pop(name) for name in HUB_OPTIONS if name in overrides}
        file = Path(path) if Path(path).is_file() else locate(path, subfolder=subfolder, files=[cls.config_name], **hub) / cls.config_name
        return cls.from_config(read_json(file), return_unused_kwargs=return_unused_kwargs, **overrides)

    def save_pretrained(self, save_directory: PathLike) -> None:
        """Write `scheduler_config.json` into the folder, whole or not at all."""
        write_text_atomic(Path(save_directory) / self.config_name, self.to_json())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json()}"

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def timesteps(self) -> Tensor:
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._timesteps, self._numbers = value, value.tolist()

    def number(self, timestep: Timestep) -> Any:
        """A timestep as a Python number. An item of `timesteps` is known by its place in memory, so that no device is waited for."""
        if not isinstance(timestep, Tensor):
            return timestep
        mine = self._timesteps
        if timestep.device.type != "cpu" and timestep.numel() == 1 and timestep.dtype == mine.dtype:
            if timestep.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr():
                return self._numbers[timestep.storage_offset() - mine.storage_offset()]
        return timestep.item()

    def _restart(self) -> None:
        """Forget the run. Subclasses add their solver's history."""
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this position of `timesteps`, as image-to-image does."""
        self.begin_index = begin_index

    def _install(self, timesteps: np.ndarray, device: Device) -> None:
        """Make this the schedule of a new run."""
        self._timesteps, self._numbers = torch.from_numpy(timesteps).to(device), timesteps.tolist()
        self._restart()

    def index_for_timestep(self, timestep: Timestep) -> int:
        """The position of a timestep; where it occurs twice the second, so that a run from the middle skips no noise level."""
        value = self.number(timestep)
        if self._timesteps.dtype == torch.float32:
            value = float(np.float32(value))
        found = [i for i, t in enumerate(self._numbers) if t == value]
        if not found:
            return self._absent(value)
        return found[0] if found[0] == 0 else found[min(1, len(found) - 1)]  # a whole run begins at its first step

    def _absent(self, timestep: float) -> int:
        raise self._error("No timestep of the schedule.", "timesteps", timestep, fix="Pass items of timesteps, not their positions.")

    def _position(self, timestep: Timestep) -> int:
        """The position of the step to take: looked up at a run's first step, then counted."""
        if self.step_index is None:
            self.step_index = self.index_for_timestep(timestep) if self.begin_index is None else self.begin_index
        if self.step_index >= (steps := len(self._numbers)):
            raise self._error("The run is over.", "step", f"{self.step_index + 1} of {steps}", fix="Call set_timesteps before a new run.")
        return self.step_index

    def _steps(self, num_inference_steps: int | None, **schedules: Sequence[float] | None) -> int:
        """The number of steps, given itself or as the length of one of the schedules. Raises InputError unless exactly one is given."""
        choices = {"num_inference_steps": num_inference_steps, **schedules}
        given = [name for name, value in choices.items() if value is not None]
        if len(given) != 1:
            raise self._error("Exactly one of these is needed.", "set_timesteps", ", ".join(given) or "none", " or ".join(choices))
        steps, most = num_inference_steps, self.config.num_train_timesteps
        if steps is None:
            steps, most = len(schedules[given[0]] or ()), LARGEST_TABLE
        if not isinstance(steps, numbers.Integral) or not 1 <= int(steps) <= most:
            raise self._error("A run cannot have this number of steps.", f"set_timesteps, {given[0]}", steps, f"1 to {most}")
        return int(steps)

    def _needs_run(self) -> None:
        if self.num_inference_steps is None:
            raise self._error("The number of steps is not known yet.", "step", None, fix="Call set_timesteps first.")

    def _result(self, return_dict: bool, prev_sample: Tensor, x0: Tensor | None = None) -> Stepped:
        """What `step` returns; the run moves on."""
        if self.step_index is not None:
            self.step_index += 1
        out = SchedulerOutput(prev_sample, x0)
        return out if return_dict else out.to_tuple()

    def scale_model_input(self, sample: Tensor, timestep: Timestep | None = None) -> Tensor:
        """The sample as the network expects it; the same here."""
        return sample


@dataclass(frozen=True, eq=False, repr=False)
class BetaConfig(Config):
    """The options that every table of betas has; `trained_betas` replaces the named schedule."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"] = "linear"
    trained_betas: tuple[float, ...] | None = None


def options(**defaults: Any) -> type[Config]:
    """The configuration of betas and these options, in this order. A tuple lists the choices, the default first; None is for a number."""
    fields: list[tuple[str, Any, Any]] = []
    for name, value in defaults.items():
        kind = Literal.__getitem__(value) if isinstance(value, tuple) else float | None if value is None else type(value)
        fields.append((name, kind, value[0] if isinstance(value, tuple) else value))
    return make_dataclass("Config", fields, bases=(BetaConfig,), frozen=True, eq=False, repr=False)


class KarrasScheduler(Scheduler):
    """A scheduler over the betas of a discrete-time process: x = alpha x0 + sigma eps, alpha^2 = alpha bar, sigma^2 = 1 - alpha bar.
    These schedulers can replace one another. `betas`, `alphas` and `alphas_cumprod` are (num_train_timesteps,) float32 on the CPU, and
    `final_alpha_cumprod` is alpha bar of the data itself, where the last step ends. This base is for integer timesteps that index the table.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__:  # where pickle finds the class, and what errors call it
            cls.Config.__module__ = cls.__module__
            cls.Config.__name__ = cls.Config.__qualname__ = f"{cls.__qualname__}.Config"

    def _assemble(self, config: Any) -> None:
        if isinstance(config.trained_betas, (np.ndarray, Tensor)):
            config = config.replace(trained_betas=config.trained_betas.tolist())
        super()._assemble(config)
        if len(config.trained_betas or ()) > LARGEST_TABLE:
            self._refuse("trained_betas", f"{len(config.trained_betas)} of them", f"at most {LARGEST_TABLE}")
        if abs(offset := self._option("steps_offset", 0)) > config.num_train_timesteps:
            self._refuse("steps_offset", offset, f"at most {config.num_train_timesteps}, the number of training timesteps")
        betas = process.betas(*(config[name] for name in BetaConfig.names()))
        self.betas = process.zero_snr(betas) if self._option("rescale_betas_zero_snr") else betas
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.final_alpha_cumprod = torch.tensor(1.0) if self._option("set_alpha_to_one", True) else self.alphas_cumprod[0]
        self.timesteps = torch.arange(config.num_train_timesteps - 1, -1, -1)

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        """The classes that this configuration can be given to, by name."""
        kinds = [getattr(schedulers, name) for name in schedulers.__all__]
        return [kind for kind in kinds if issubclass(kind, KarrasScheduler) and hasattr(kind, "Config")]

    def _option(self, name: str, default: Any = False) -> Any:
        """An option of this class, or `default` where it has none (a key that is kept for another class does not count)."""
        return self.config[name] if name in self.config.names() else default

    def _spaced(self, steps: int) -> np.ndarray:
        """Descending whole timesteps, by the configured rule: int64 (steps,)."""
        spacing, offset = self.config.timestep_spacing, self.config.steps_offset
        return process.spaced(spacing, steps, self.config.num_train_timesteps, offset).round().astype(np.int64)

    def limit(self, x0: Tensor) -> Tensor:
        """A predicted x0, limited as configured: clipped, or dynamically thresholded (Saharia et al. 2022, sec. 2.3), or as it is."""
        if not self._option("thresholding"):
            bound = self._option("clip_sample") and self.config.clip_sample_range
            return x0.clamp(-bound, bound) if bound else x0
        rows = (x0 if x0.dtype in (torch.float32, torch.float64) else x0.float()).flatten(1)
        bound = rows.abs().quantile(self.config.dynamic_thresholding_ratio, dim=1, keepdim=True).clamp(1, self.config.sample_max_value)
        return (rows.clamp(-bound, bound) / bound).reshape(x0.shape).to(x0.dtype)

    def alpha_bar(self, t: int) -> Tensor:
        """Alpha bar at an integer timestep, `final_alpha_cumprod` below 0: ()."""
        return self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps () or (B,), in dtype and device of `like` (B, ...): each (B, 1, ...)."""
        bar = self.alphas_cumprod.to(like)[timesteps.to(like.device)].reshape(-1, *[1] * (like.ndim - 1))
        return bar**0.5, (1 - bar) ** 0.5

    def x0_and_eps(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps from the network's input and output, as `scale_model_input` and `signal_and_noise` give them."""
        return process.PRESERVING[self.config.prediction_type](out, x, alpha, sigma)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.signal_and_noise(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x0, what a network with v_prediction learns (Salimans & Ho 2022, app. D)."""
        alpha, sigma = self.signal_and_noise(timesteps, sample)
        return alpha * noise - sigma * sample


class SigmaScheduler(KarrasScheduler):
    """A run is a row of descending `sigmas`, (steps + 1,), in float32 on the CPU; the sample stays variance-preserving."""

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if self._option("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # the smallest float16 above 0: sigma stays finite
        chosen = [name for name in process.SIGMA_SCHEDULES if self._option(f"use_{name}_sigmas")]
        if len(chosen) > 1:
            self._refuse(" and ".join(f"use_{name}_sigmas" for name in chosen), True, "only one of them")
        for name in ("sigma_min", "sigma_max"):
            value = getattr(config, name, None)
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                self._refuse(name, value, "above 0")
        self.sigma_schedule = chosen[0] if chosen else None
        self.sigma_table = (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).numpy()  # ascending, (num_train_timesteps,)
        self._lay_out(np.arange(config.num_train_timesteps, dtype=np.float32)[::-1].copy(), self.sigma_table[::-1], None, end=0)

    def split(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the sample that the network sees, whose ratio sigma / alpha is the given sigma."""
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return alpha, sigma * alpha

    def _sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        return np.interp(timesteps, np.arange(len(self.sigma_table)), self.sigma_table)

    def _by_schedule(self, high: float, low: float, n: int) -> np.ndarray:
        """n sigmas by the chosen schedule. Ends that the configuration names win, also those kept for another class."""
        least, most = (getattr(self.config, name, None) for name in ("sigma_min", "sigma_max"))
        schedule = process.SIGMA_SCHEDULES[self.sigma_schedule]  # type: ignore[index]
        return schedule(float(high) if most is None else most, float(low) if least is None else least, n)

    def _lay_out(self, timesteps: np.ndarray, sigmas: np.ndarray, device: Device, end: float | None = None) -> None:
        """Make this the schedule of a new run. Sigmas stay on the CPU, where reading them waits for no device."""
        if end is None:
            end = self.sigma_table[0] if self._option("final_sigmas_type") == "sigma_min" else 0
        self.sigmas = torch.from_numpy(np.append(sigmas, end).astype(np.float32))
        self._install(timesteps, device)

    def _free_timesteps(self, timesteps: Sequence[float] | None, *blocked: str) -> None:
        """Raise InputError for custom timesteps together with options that choose the timesteps: the sigma schedules, and those `blocked`."""
        named = [name for name in (*(f"use_{schedule}_sigmas" for schedule in process.SIGMA_SCHEDULES), *blocked) if self._option(name)]
        if named and timesteps is not None:
            what, fix = "The configuration already chooses the timesteps.", "Pass num_inference_steps instead."
            raise self._error(what, "set_timesteps, timesteps", f"timesteps, with {named[0]}", fix=fix)

    def _levels(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """Sigmas at timesteps () or (B,), or at the run's position where `set_begin_index` named one: (B, 1, ...)."""
        if self.begin_index is None:
            indices = [self.index_for_timestep(t) for t in timesteps.reshape(-1).tolist()]
        else:
            indices = [self.begin_index if self.step_index is None else self.step_index] * timesteps.numel()
        return self.sigmas[indices].to(like).reshape(-1, *[1] * (like.ndim - 1))

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self._levels(timesteps, like))
