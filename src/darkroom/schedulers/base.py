"""The bases of schedulers: configuration, files, the run's position, and the table of a discrete-time process."""

from __future__ import annotations
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, get_args, get_origin
import numpy as np
import torch
from torch import Tensor
from .. import schedulers
from ..checkpoints.atomic import write_text_atomic
from ..checkpoints.files import PathLike, read_json
from ..checkpoints.hub import HUB_OPTIONS, locate
from ..config import Config, Configurable, fits, hints_of
from ..errors import ConfigError, InputError
from ..outputs import Output
from . import process

__all__ = ["Device", "KarrasScheduler", "Scheduler", "SchedulerOutput", "SigmaScheduler", "Stepped", "Timestep", "options", "roots"]

Device = torch.device | str | None
Timestep = Tensor | float
PREDICTIONS = ("epsilon", "sample", "v_prediction")
FLOWS = (*PREDICTIONS, "flow_prediction")
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
FLOWING = {"use_flow_sigmas": False, "flow_shift": 1.0}
SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": ("exponential", "linear")}
LEADING, LINSPACE = ("leading", "linspace", "trailing"), ("linspace", "leading", "trailing")  # the default spacing first
# what a flow-matching network was trained with; classes that have no such option keep it beside theirs, and heed it
PATH_OPTIONS = ("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal")
# the classes that share one configuration: the reference's, and those that it does not have
KARRAS = tuple(f"{name}Scheduler" for name in (
    "DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE", "DPMSolverSinglestep", "EDMEuler", "ERSDE", "EulerAncestralDiscrete",
    "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM", "RESMultistep", "UniPCMultistep",
))  # fmt: skip
LARGEST_TABLE = 1_000_000  # a file may ask for any number; this bounds what it costs


@dataclass
class SchedulerOutput(Output):
    """One step's result: the sample at the next timestep, and the x0 that was predicted on the way where the method has one."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


Stepped = SchedulerOutput | tuple[Tensor, ...]  # what `step` returns


class Scheduler(Configurable):
    """Timesteps of a run, and one step of it: `set_timesteps(n)`, then `step(out, t, x).prev_sample` for each t of `timesteps`. `step` takes the
    network's output and the sample, (B, C, ...) both, and an item of `timesteps`; a `generator` (or one for each row) makes its noise, and
    `return_dict=False` gives a tuple. It replaces attributes and never changes them in place: a `copy.copy` is an independent run. `timesteps`
    descend, (steps,), on the device given to `set_timesteps`; before, they are the whole table. `init_noise_sigma` is the standard deviation of the
    noise that a run starts from, and `order` the network evaluations per step of the schedule."""

    config_name: ClassVar[str] = "scheduler_config.json"
    _compatibles: ClassVar[tuple[str, ...]] = ()  # other classes that this configuration can be given to
    _foreign: ClassVar[dict[str, str]] = {}  # names of other solvers, found in files that several schedulers share, and this one's for them
    _history: ClassVar[tuple[str, ...]] = ("step_index", "begin_index")  # the attributes that belong to a run
    kind: ClassVar[str] = "diffusion"  # the row of the catalogue: what is sampled,
    accuracy: ClassVar[str] = "1"  # the order of convergence where it is one,
    draws: ClassVar[Literal["yes", "no", "optional"]] = "no"  # whether steps draw noise, or an option decides,
    paper: ClassVar[str] = ""  # and the source
    order: ClassVar[int] = 1
    init_noise_sigma: float | Tensor = 1.0
    num_inference_steps: int | None = None
    step_index: int | None = None  # the position of the next step in `timesteps`, once the first was asked for
    begin_index: int | None = None  # where the run starts, if `set_begin_index` said so

    def __init_subclass__(cls, **facts: str) -> None:
        """The facts of a class for the catalogue, `kind`, `accuracy`, `draws` and `paper`, may stand in its head."""
        super().__init_subclass__()
        for name, fact in facts.items():
            setattr(cls, name, fact)
        if "Config" in cls.__dict__:  # where pickle finds the class, and what errors call it
            cls.Config.__module__ = cls.__module__
            cls.Config.__name__ = cls.Config.__qualname__ = f"{cls.__qualname__}.Config"
            cls.Config.flow = getattr(cls, "flow", False)  # type: ignore[attr-defined]  # whether it describes a flow-matching scheduler

    def _assemble(self, config: Config) -> None:
        """Check the configuration, then build tables and the timesteps that hold before `set_timesteps`."""
        kinds = [k for k in ("algorithm_type", "solver_type") if k in config.names() and str(config[k]) in self._foreign]
        changes: dict[str, Any] = {k: self._foreign[str(config[k])] for k in kinds}
        if isinstance(betas := config.get("trained_betas"), (np.ndarray, Tensor)):
            changes["trained_betas"] = betas.tolist()
        self.config = config = config.replace(**changes) if changes else config
        self._table: int | None = self._option("num_train_timesteps", None)  # the training's
        hints = hints_of(type(config))
        for name in config.names():
            value, hint = config[name], hints[name]
            no_number = isinstance(value, numbers.Real) and not abs(value) < 1e308 and value != getattr(type(config), name, None)  # type: ignore[operator]
            if no_number or not fits(value, hint):
                self._refuse(name, value, ", ".join(getattr(a, "__name__", str(a)) for a in get_args(hint)) or hint.__name__)
        if self._table is not None and not 1 <= self._table <= LARGEST_TABLE:
            self._refuse("num_train_timesteps", self._table, f"1 to {LARGEST_TABLE}")
        self._restart()

    def _option(self, name: str, default: Any = False) -> Any:
        """An option of this class, or `default` where it has none (a key that is kept for another class does not count)."""
        return self.config[name] if name in self.config.names() else default

    def _positive(self, *names: str) -> None:
        """Raise ConfigError for the first of these options that is no number above 0, where it is given."""
        for name in names:
            value = self.config.get(name)
            if value is not None and not (isinstance(value, numbers.Real) and value > 0):  # type: ignore[operator]
                self._refuse(name, value, "above 0")

    def _refuse(self, name: str, got: object, expected: object) -> NoReturn:
        where = f"{type(self).__name__}, option {name}"
        raise ConfigError("An option with a value that has no meaning.", where=where, got=got, expected=expected)

    def _error(self, what: str, where: str, got: object, expected: object = None, fix: str | None = None) -> InputError:
        return InputError(what, where=f"{type(self).__name__}.{where}", got=got, expected=expected, fix=fix)

    def _ensure(self, holds: object, what: str, where: str, got: object, expected: object = None, fix: str | None = None) -> None:
        """Raise InputError unless this holds."""
        if not holds:
            raise self._error(what, where, got, expected, fix)

    @classmethod
    def from_pretrained(cls, path: PathLike, subfolder: str | None = None, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Load from a folder with `scheduler_config.json` (of this or another class), that file itself, or a hub id; `subfolder` is the component's
        inside it, usually "scheduler". `overrides` change options, and with `return_unused_kwargs` those that are none of this class are returned
        too; `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` go to the hub. Raises CheckpointError for a folder or file that
        cannot be used, ConfigError for a value in it that has no meaning."""
        hub = {name: overrides.pop(name) for name in HUB_OPTIONS if name in overrides}
        file = Path(path) if Path(path).is_file() else locate(path, subfolder=subfolder, files=[cls.config_name], **hub) / cls.config_name
        return cls.from_config(read_json(file), return_unused_kwargs=return_unused_kwargs, **overrides)

    def save_pretrained(self, save_directory: PathLike) -> None:
        """Write `scheduler_config.json` into the folder, whole or not at all."""
        write_text_atomic(Path(save_directory) / self.config_name, self.to_json())

    @property
    def compatibles(self) -> list[type[Scheduler]]:
        """The classes that this configuration can be given to, by name; this one among them."""
        kinds = {type(self), *(getattr(schedulers, name) for name in self._compatibles if name in schedulers.__all__)}
        return sorted(kinds, key=lambda kind: kind.__name__)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json()}"

    def __len__(self) -> int:
        return self._table or len(self._numbers)

    def __bool__(self) -> bool:
        """True, also before a run without a table, whose length is 0."""
        return True

    @property
    def timesteps(self) -> Tensor:
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._know(value, value.tolist())

    def _know(self, timesteps: Tensor, numbers: list[float]) -> None:
        first: dict[float, int] = {}
        places: dict[float, int] = {}
        for place, number in enumerate(numbers):
            if first.setdefault(number, place) == place or first[number] == places[number] != 0:  # a whole run begins at its first step
                places[number] = place
        self._timesteps, self._numbers, self._places = timesteps, numbers, places
        self._memo: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives for the present schedule, made when it is first asked for."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

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
        """Forget the run: what the classes name in `_history` is again as the class has it."""
        for name in {name for kind in type(self).__mro__ for name in getattr(kind, "_history", ())}:
            setattr(self, name, getattr(type(self), name))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this position of `timesteps`, as image-to-image does."""
        self.begin_index = begin_index

    def _install(self, timesteps: np.ndarray, device: Device) -> None:
        """Make this the schedule of a new run."""
        self._know(torch.from_numpy(timesteps).to(device), timesteps.tolist())
        self._restart()

    def index_for_timestep(self, timestep: Timestep) -> int:
        """The position of a timestep; where it occurs twice the second, so that a run from the middle skips no noise level."""
        value = self.number(timestep)
        if self._timesteps.dtype == torch.float32:
            value = float(np.float32(value))
        place = self._places.get(value)
        return self._absent(value) if place is None else place

    def _absent(self, timestep: float) -> int:
        raise self._error("No timestep of the schedule.", "timesteps", timestep, fix="Pass items of timesteps, not their positions.")

    def _position(self, timestep: Timestep) -> int:
        """The position of the step to take: looked up at a run's first step, then counted."""
        if self.step_index is None:
            self.step_index = self.index_for_timestep(timestep) if self.begin_index is None else self.begin_index
        if self.step_index >= (steps := len(self._numbers)):
            raise self._error("The run is over.", "step", f"{self.step_index + 1} of {steps}", fix="Call set_timesteps before a new run.")
        return self.step_index

    def _no_position(self, timestep: Timestep) -> None:
        """Raise InputError for a whole number, nearly always a position taken for a timestep."""
        if not timestep.is_floating_point() if isinstance(timestep, Tensor) else isinstance(timestep, int):
            raise self._error("An integer is no timestep of this scheduler.", "step, timestep", timestep, "an item of timesteps, floats")

    def _steps(self, num_inference_steps: int | None, **schedules: Sequence[float] | None) -> int:
        """The number of steps, given itself or as the length of one of the schedules. Raises InputError unless exactly one is given."""
        choices: dict[str, Any] = {"num_inference_steps": num_inference_steps, **schedules}
        given = [name for name, value in choices.items() if value is not None]
        if len(given) != 1:
            raise self._error("Exactly one of these is needed.", "set_timesteps", ", ".join(given) or "none", " or ".join(choices))
        counted = (len(choices[given[0]]),) if num_inference_steps is None else (num_inference_steps, self._table or LARGEST_TABLE)
        return self._counted(given[0], *counted)

    def _counted(self, name: str, steps: Any, most: int = LARGEST_TABLE) -> int:
        if not isinstance(steps, numbers.Integral) or not 1 <= int(steps) <= most:
            raise self._error("A run cannot have this number of steps.", f"set_timesteps, {name}", steps, f"1 to {most}")
        return int(steps)

    def _descending(self, timesteps: Sequence[int]) -> np.ndarray:
        """The timesteps that a caller chose: int64 (steps,). Raises InputError unless they descend inside the table."""
        chosen, most = np.array(timesteps, dtype=np.int64), self.config.num_train_timesteps - 1
        if chosen[0] > most or chosen[-1] < 0 or (np.diff(chosen) >= 0).any():
            expected = f"descending, from at most {most} to at least 0"
            raise self._error("Timesteps that cannot be followed.", "set_timesteps, timesteps", chosen.tolist(), expected)
        return chosen

    def _needs_run(self) -> None:
        if self.num_inference_steps is None:
            raise self._error("The number of steps is not known yet.", "step", None, fix="Call set_timesteps first.")

    def _result(self, return_dict: bool, prev_sample: Tensor, x0: Tensor | None = None, kind: Any = SchedulerOutput) -> Stepped:
        """What `step` returns; the run moves on."""
        if self.step_index is not None:
            self.step_index += 1
        out = kind(prev_sample, x0)
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


def roots(*values: np.float32) -> tuple[Tensor, ...]:
    """Square roots as tensors (), by torch, whose rounding differs from numpy's."""
    return (torch.from_numpy(np.array(values, dtype=np.float32)) ** 0.5).unbind()


def options(base: type[Config] = BetaConfig, /, **defaults: Any) -> type[Config]:
    """The configuration of betas (or another) and these options, in this order. A default shows its type, None a number's. A tuple lists the choices,
    the default first, or is a type and the default; a type alone is for an option that must be given."""
    fields: list[Any] = []
    for name, value in defaults.items():
        kind = value[0] if isinstance(value, tuple) else value
        if isinstance(kind, type) or get_origin(kind):
            fields.append((name, *value) if isinstance(value, tuple) else (name, value))
        elif isinstance(value, tuple):
            fields.append((name, Literal.__getitem__(value), kind))
        else:
            fields.append((name, float | None if value is None else tuple if isinstance(value, list) else type(value), value))
    return make_dataclass("Config", fields, bases=(base,), frozen=True, eq=False, repr=False)


class KarrasScheduler(Scheduler):
    """A scheduler over the betas of a discrete-time process: x = alpha x0 + sigma eps, alpha^2 = alpha bar, sigma^2 = 1 - alpha bar. These schedulers
    can replace one another. `betas`, `alphas` and `alphas_cumprod` are (num_train_timesteps,) float32 on the CPU, and `final_alpha_cumprod` is alpha
    bar of the data itself, where the last step ends. This base is for integer timesteps that index the table."""

    _compatibles: ClassVar[tuple[str, ...]] = KARRAS

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        config = self.config
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

    def _spaced(self, steps: int) -> np.ndarray:
        """Descending whole timesteps, by the configured rule: int64 (steps,)."""
        spacing, offset = self.config.timestep_spacing, self.config.steps_offset
        return process.spaced(spacing, steps, self.config.num_train_timesteps, offset).round().astype(np.int64)

    def limit(self, x0: Tensor) -> Tensor:
        """A predicted x0, limited as configured: clipped, or dynamically thresholded (Saharia et al. 2022, sec. 2.3), or as it is."""
        thresholding, clip = self._once("limits", lambda: (self._option("thresholding"), self._option("clip_sample")))
        if not thresholding:
            bound = clip and self.config.clip_sample_range
            return x0.clamp(-bound, bound) if bound else x0
        rows = (x0 if x0.dtype in (torch.float32, torch.float64) else x0.float()).flatten(1)
        bound = rows.abs().quantile(self.config.dynamic_thresholding_ratio, dim=1, keepdim=True).clamp(1, self.config.sample_max_value)
        return (rows.clamp(-bound, bound) / bound).reshape(x0.shape).to(x0.dtype)

    def alpha_bar(self, t: int) -> Tensor:
        """Alpha bar at an integer timestep, `final_alpha_cumprod` below 0: ()."""
        return self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod

    def _bar(self, t: int) -> np.float32:
        """Alpha bar at an integer timestep, for arithmetic that is quicker than that of tensors ()."""
        if t < 0:
            return np.float32(self.final_alpha_cumprod)
        return self._once("bars", lambda: self.alphas_cumprod.cpu().numpy())[t]

    def bars(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha bar at the timesteps (B,) of the rows of `like` (B, ...), and one stride further, 1 behind the data: (B, 1, ...) each."""
        t = timesteps.reshape(-1, *[1] * (like.ndim - 1))
        table, steps = self.alphas_cumprod.to(like.device), self.config.num_train_timesteps
        after = t - steps // (self.num_inference_steps or steps)
        return table[t], torch.where(after < 0, 1.0, table[after.clamp(min=0)])

    def signal_and_noise(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at timesteps () or (B,), in dtype and device of `like` (B, ...): each (B, 1, ...)."""
        bar = self.alphas_cumprod.to(like)[timesteps.to(like.device)].reshape(-1, *[1] * (like.ndim - 1))
        return bar**0.5, (1 - bar) ** 0.5

    def x0_and_eps(self, x: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps from the network's input and output, as `scale_model_input` and `signal_and_noise` give them."""
        kind = self.config.prediction_type
        return process.X0[kind](out, x, alpha, sigma), process.EPS[kind](out, x, alpha, sigma)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps for x0 and noise (B, ...) at timesteps (B,) or (1,) (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.signal_and_noise(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = alpha eps - sigma x0, what a network with v_prediction learns (Salimans & Ho 2022, app. D)."""
        alpha, sigma = self.signal_and_noise(timesteps, sample)
        return alpha * noise - sigma * sample


def _describes_flow(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a flow-matching scheduler: by its class, or, where a dict does not name it, by its keys."""
    kind = getattr(getattr(schedulers, str(config.get("_class_name")), None), "Config", type(config))
    if issubclass(kind, Config):
        return getattr(kind, "flow", False)
    keys = {key for key in config if not key.startswith("_")}
    return "base_shift" in keys or {"shift"} < keys <= {*schedulers.FlowMatchEulerDiscreteScheduler.Config.names()}


class Course(NamedTuple):
    """alpha, sigma and half the log-SNR, log(alpha / sigma), at every position of a run: (steps + 1,) each, float32."""

    alpha: Tensor
    sigma: Tensor
    lam: Tensor


class SigmaScheduler(KarrasScheduler):
    """A run is a row of descending `sigmas`, (steps + 1,), in float32 on the CPU: noise-to-signal ratios of a variance-preserving process, or, for a
    flow, the sigma of its straight path x = (1 - sigma) x0 + sigma eps, whose timesteps are sigma x num_train_timesteps. The path is a flow's if the
    network predicts "flow_prediction", or if `use_flow_sigmas` says so: also where only another class has that option. It is the only place where the
    two kinds differ: solvers read alpha, sigma and log-SNR off `path`."""

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        self.flow = config.prediction_type == "flow_prediction" or (self._flows() and bool(config.get("use_flow_sigmas")))
        given = "flow_shift" in config and "flow_shift" not in config.defaulted
        self.flow_shift = config["flow_shift"] if given else config.get("shift", 1.0)
        if self.flow and not (isinstance(self.flow_shift, (int, float)) and self.flow_shift > 0):
            self._refuse("flow_shift", self.flow_shift, "above 0")
        if self._option("shift_terminal", None) is not None and not self.flow:
            self._refuse("shift_terminal", config.shift_terminal, "use_flow_sigmas=True with it")
        if self._option("rescale_betas_zero_snr"):
            self.alphas_cumprod[-1] = 2**-24  # the smallest float16 above 0: sigma stays finite
        self._choose_schedule()
        self._positive("sigma_min", "sigma_max")
        self.sigma_table = (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).numpy()  # ascending, (num_train_timesteps,)
        table = config.num_train_timesteps
        sigmas = process.shifted(np.arange(table, 0, -1) / table, self.flow_shift) if self.flow else self.sigma_table[::-1]
        timesteps = sigmas * table if self.flow else np.arange(table, dtype=np.float32)[::-1].copy()
        self._lay_out(timesteps.astype(np.float32), sigmas, None, end=0)

    def _choose_schedule(self) -> None:
        """Keep which of the `use_..._sigmas` is on in `sigma_schedule`. Raises ConfigError for more than one."""
        chosen = [name for name in process.SIGMA_SCHEDULES if self._option(f"use_{name}_sigmas")]
        if len(chosen) > 1:
            self._refuse(" and ".join(f"use_{name}_sigmas" for name in chosen), True, "only one of them")
        self.sigma_schedule: str | None = chosen[0] if chosen else None

    @classmethod
    def _flows(cls) -> bool:
        """Whether this class can sample flows."""
        return "flow_prediction" in get_args(hints_of(cls.Config).get("prediction_type"))

    @classmethod
    def _configure(cls, *args: Any, **options: Any) -> Any:
        aside = {k: options.pop(k) for k in PATH_OPTIONS if k in options and k not in cls.Config.names() and cls._flows()}
        config = super()._configure(*args, **options)
        return config.replace(**aside) if aside else config

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, *, return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """Build from a configuration: a dict, or the `.config` of this or another class, whose own keys are kept. `changes` override keys. The
        configuration of a flow-matching scheduler gives one for flows; its `shift` is `flow_shift` here."""
        config = config or {}
        aside = {k: changes.pop(k) for k in PATH_OPTIONS if k in changes and k not in cls.Config.names() and cls._flows()}
        if cls._flows() and "shift" in config and "prediction_type" not in config and _describes_flow(config):
            known = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": config["shift"]}
            aside = {k: v for k, v in known.items() if k in cls.Config.names() and k not in changes} | aside
        if aside:
            silent = {*config.get("_use_default_values", ()), *getattr(config, "defaulted", ())} - {*aside}
            config = {**config, **aside, "_use_default_values": tuple(silent)}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **changes)

    @property
    def sigmas(self) -> Tensor:
        return self._sigmas

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        self._sigmas, self._memo = value, {}

    @property
    def levels(self) -> list[float]:
        """The sigmas as numbers."""
        return self._once("levels", self._sigmas.tolist)

    @property
    def marks(self) -> tuple[Tensor, ...]:
        """The sigmas, () each: with bfloat16 samples on the CPU these round as the reference's arithmetic does, and numbers do not."""
        return self._once("marks", self._sigmas.unbind)

    @property
    def path(self) -> Course:
        """alpha, sigma and log-SNR at every position of the run."""
        return self._once("path", lambda: Course(*(ends := self.split(self._sigmas)), ends[0].log() - ends[1].log()))

    @property
    def splits(self) -> list[tuple[Tensor, Tensor]]:
        """(alpha, sigma) at every position of the run, () each."""
        return self._once("splits", lambda: list(zip(self.path.alpha.unbind(), self.path.sigma.unbind())))

    def split(self, sigma: Any) -> tuple[Any, Any]:
        """(alpha, sigma) of the sample that the network sees, at one of `sigmas`: their ratio is the given sigma, or for flows their sum is 1."""
        if self.flow:
            return 1 - sigma, sigma
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return alpha, sigma * alpha

    def _sigmas_at(self, timesteps: np.ndarray) -> np.ndarray:
        if self.flow:
            return np.asarray(timesteps) / self.config.num_train_timesteps
        return np.interp(timesteps, np.arange(len(self.sigma_table)), self.sigma_table)

    def _by_schedule(self, high: float, low: float, n: int) -> np.ndarray:
        """n sigmas by the chosen schedule. Ends that the configuration names win, also those kept for another class."""
        least, most = (getattr(self.config, name, None) for name in ("sigma_min", "sigma_max"))
        schedule = process.SIGMA_SCHEDULES[self.sigma_schedule]  # type: ignore[index]
        return schedule(float(high) if most is None else most, float(low) if least is None else least, n)

    def _scheduled(self, high: float, low: float, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps and sigmas by the chosen schedule, (n,) each. Flows take the noise-to-signal ratios of a variance-preserving process, which the
        schedules were made for."""
        sigmas = self._by_schedule(high, low, n)
        if self.flow:
            sigmas = sigmas / (sigmas + 1)
            return sigmas * self.config.num_train_timesteps, sigmas
        return process.sigma_to_t(sigmas, self.sigma_table), sigmas

    def _shifted(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        """Flow sigmas in (0, 1], descending, moved as configured, or by `mu`, and stretched to the configured end."""
        if mu is None:
            sigmas = process.shifted(sigmas, self.flow_shift)
        else:
            sigmas = process.time_shift(mu, 1.0, sigmas, self.config.get("time_shift_type", "exponential"))
        terminal = self.config.get("shift_terminal")
        return process.stretched(sigmas, terminal) if terminal else sigmas

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

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network with v_prediction learns, alpha eps - sigma x0, or for flows eps - x0 (Lipman et al. 2023)."""
        return noise - sample if self.flow else super().get_velocity(sample, noise, timesteps)
