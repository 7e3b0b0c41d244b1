"""The schedulers for a reader: a table of text, and pictures, by matplotlib, of their noise schedules and steps."""

from __future__ import annotations
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
import numpy as np
import torch
from . import schedulers
from .checkpoints.files import PathLike
from .errors import InputError, MissingDependencyError
from .schedulers import process
from .schedulers.base import Scheduler
from .schedulers.catalogue import Row, describe

__all__ = ["chart", "noise_schedules", "placements", "plot_schedulers", "scheduler_table"]

STEPS = 12
LIMIT = 16.0  # pure noise and data have no log-SNR; pictures end here
ENDS = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid": (0.0001, 0.02)}  # betas; the other tables have no choice
SPACINGS: list[dict[str, Any]] = [  # of one solver: what its options do to the steps
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    *({f"use_{schedule}_sigmas": True} for schedule in process.SIGMA_SCHEDULES if schedule != "lu"),  # which is the exponential one
    *({"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift} for shift in (1.0, 3.0)),
]  # fmt: skip
NEEDED = {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 2.0, "tsr_sigma": 1.0, "tail_steps": 0}  # options without a default
STYLES = {"": "-", "zero SNR": "--", "shift 1": "-", "shift 3": "--", "shift 5": ":"}


def scheduler_table() -> list[str]:
    """One line for each scheduler, under a line of headings: what it samples, its order, evaluations per step, whether it draws noise, source."""
    rows = sorted([str(cell).removesuffix("Scheduler") for cell in row] for row in describe())
    cells = [[*Row._fields], *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]


def _log_snr(alpha: Any, sigma: Any) -> np.ndarray:
    alpha, sigma = (np.asarray(value, dtype=np.float64).ravel() for value in (alpha, sigma))
    with np.errstate(divide="ignore"):
        return np.clip(2 * (np.log(alpha) - np.log(sigma)), -LIMIT, LIMIT)


def noise_schedules() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(t, log-SNR) of the tables of betas, as they are and scaled to end at 0, and of flows with some shifts, by name; t from 0 to 1."""
    t, found = np.linspace(0, 1, 1000), {}
    for name in process.BETA_SCHEDULES:
        betas = process.betas(1000, *ENDS.get(name, (0, 0)), name)
        for label, values in ((name, betas), (f"{name}, zero SNR", process.zero_snr(betas))):
            bar = (1 - values.double()).cumprod(0)
            found[label] = (t, _log_snr(bar.sqrt(), (1 - bar).sqrt()))
    for shift in (1.0, 3.0, 5.0):
        sigma = process.shifted(t, shift)
        found[f"flow, shift {shift:g}"] = (t, _log_snr(1 - sigma, sigma))
    return found


def _places(scheduler: Any) -> np.ndarray | None:
    """The log-SNR at each step of a run, or None where a scheduler has no such levels (tokens, or steps of another kind)."""
    takes = inspect.signature(scheduler.set_timesteps).parameters if hasattr(scheduler, "set_timesteps") else ()
    try:
        scheduler.set_timesteps(STEPS, **({"stage_index": 0} if "stage_index" in takes else {}))
    except (InputError, MissingDependencyError):
        return None
    timesteps, sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
    if hasattr(scheduler, "signal_and_noise"):
        whole = timesteps if timesteps.is_floating_point() else timesteps.clamp(min=0)
        return _log_snr(*scheduler.signal_and_noise(whole, torch.ones(len(whole), dtype=torch.float64)))
    if scheduler.kind == "flow":
        sigma = 1 - timesteps if sigmas is None else sigmas[: len(timesteps)]
        return _log_snr(1 - sigma, sigma)
    return None


def placements() -> dict[str, dict[str, np.ndarray]]:
    """By group, then by scheduler, the log-SNR at each of twelve steps with the options at their defaults; "spacings" has the options of one."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for row in describe():
        kind: type[Scheduler] = getattr(schedulers, row.name)
        needed = {name: value for name, value in NEEDED.items() if name in kind.Config.names()}
        if row.kind != "tokens" and (found := _places(kind(**needed))) is not None:
            groups.setdefault(row.kind.split(",")[0], {})[row.name.removesuffix("Scheduler")] = found
    for options in SPACINGS:
        label = ", ".join(f"{k}={v}" for k, v in options.items() if k != "prediction_type")
        groups.setdefault("spacings", {})[label] = _places(schedulers.DPMSolverMultistepScheduler(**options))  # type: ignore[assignment]
    return groups


@contextmanager
def chart(file: Path, height: float, title: str) -> Iterator[Any]:
    """Axes to draw on, 9 inches wide, saved as this file at the end. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Drawing needs matplotlib.", where="schedulers, plot", fix="pip install matplotlib") from error
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.grid(axis="both", alpha=0.3)
    yield axes
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def plot_schedulers(folder: PathLike) -> list[Path]:
    """Draw `noise_schedules` and, for each group, `placements` into PNG files of the folder, which is made. Returns the files."""
    files = [Path(folder) / "noise_schedules.png"]
    with chart(files[0], 6, "Noise schedules: log-SNR over time, from data to noise") as axes:
        colours: dict[str, str] = {}
        for label, (t, level) in noise_schedules().items():
            name, _, variant = label.partition(", ")
            axes.plot(t, level, STYLES[variant], label=label, color=colours.setdefault(name, f"C{len(colours)}"))
        axes.set(xlabel="t / T", ylabel="log-SNR", xlim=(0, 1), ylim=(-LIMIT, LIMIT))
        axes.legend(fontsize="small", ncols=3, loc="upper right")
    for group, rows in placements().items():
        files.append(Path(folder) / f"steps_{group}.png")
        with chart(files[-1], 1.1 + 0.26 * len(rows), f"Where {STEPS} steps are: {group}") as axes:
            for place, level in enumerate(rows.values()):
                axes.plot(level, [place] * len(level), "k|-", markersize=10, linewidth=0.4)
            axes.set(xlabel="noise  <  log-SNR  <  data", xlim=(-LIMIT - 0.5, LIMIT + 0.5), ylim=(len(rows) - 0.4, -0.6))
            axes.set_yticks(range(len(rows)), labels=list(rows))
    return files
