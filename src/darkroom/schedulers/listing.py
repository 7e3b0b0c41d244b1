"""The schedulers for a reader: a table of text, and pictures of their noise schedules and steps."""

from __future__ import annotations
import inspect
from pathlib import Path
from typing import Any
import numpy as np
import torch
from .. import schedulers
from ..checkpoints.files import PathLike
from ..errors import InputError, MissingDependencyError
from . import process
from .base import KarrasScheduler, Scheduler, SigmaScheduler
from .catalogue import Row, describe

__all__ = ["noise_schedules", "placements", "plot", "table"]

STEPS = 12
LIMIT = 16.0  # pure noise and data have no log-SNR; pictures end here
BETAS = {
    "linear": (0.0001, 0.02),
    "scaled_linear": (0.00085, 0.012),
    "squaredcos_cap_v2": (0, 0),
    "laplace": (0, 0),
    "exp": (0, 0),
    "sigmoid": (0.0001, 0.02),
}
SPACINGS: list[dict[str, Any]] = [  # of one solver: what its options do to the steps
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    *({f"use_{schedule}_sigmas": True} for schedule in ("karras", "exponential", "beta")),
    *({"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift} for shift in (1.0, 3.0)),
]  # fmt: skip
EXAMPLES: dict[str, dict[str, Any]] = {  # classes with options that have no default
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 2.0, "tsr_sigma": 1.0, "tail_steps": 0}
}


def table() -> list[str]:
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
    for name, ends in BETAS.items():
        betas = process.betas(1000, *ends, name)
        for label, values in ((name, betas), (f"{name}, zero SNR", process.zero_snr(betas))):
            bar = (1 - values.double()).cumprod(0)
            found[label] = (t, _log_snr(bar.sqrt(), (1 - bar).sqrt()))
    for shift in (1.0, 3.0, 5.0):
        sigma = process.shifted(t, shift)
        found[f"flow, shift {shift:g}"] = (t, _log_snr(1 - sigma, sigma))
    return found


def _places(scheduler: Scheduler) -> np.ndarray | None:
    """The log-SNR at each step of a run, or None where a scheduler has no such levels (tokens, or steps of another kind)."""
    takes = inspect.signature(scheduler.set_timesteps).parameters if hasattr(scheduler, "set_timesteps") else ()
    try:
        scheduler.set_timesteps(STEPS, **({"stage_index": 0} if "stage_index" in takes else {}))  # type: ignore[attr-defined]
    except (InputError, MissingDependencyError):
        return None
    timesteps, sigmas = scheduler.timesteps, getattr(scheduler, "sigmas", None)
    if isinstance(scheduler, SigmaScheduler):
        return _log_snr(*scheduler.split(scheduler.sigmas[: len(timesteps)].double()))
    if isinstance(scheduler, KarrasScheduler):
        bar = scheduler.alphas_cumprod[timesteps.long().clamp(min=0)]
        return _log_snr(bar.sqrt(), (1 - bar).sqrt())
    if hasattr(scheduler, "signal_and_noise"):
        return _log_snr(*scheduler.signal_and_noise(timesteps, torch.ones(len(timesteps))))
    if scheduler.kind == "flow":
        sigma = 1 - timesteps if sigmas is None else sigmas[: len(timesteps)]
        return _log_snr(1 - sigma, sigma)
    return None


def placements() -> dict[str, dict[str, np.ndarray]]:
    """By group, then by scheduler, the log-SNR at each of twelve steps with the options at their defaults; "spacings" has the options of one."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for row in describe():
        kind = getattr(schedulers, row.name)
        if row.kind != "tokens" and (found := _places(kind(**EXAMPLES.get(row.name, {})))) is not None:
            groups.setdefault(row.kind.split(",")[0], {})[row.name.removesuffix("Scheduler")] = found
    for options in SPACINGS:
        label = ", ".join(f"{k}={v}" for k, v in options.items() if k not in ("prediction_type",))
        if (found := _places(schedulers.DPMSolverMultistepScheduler(**options))) is not None:
            groups.setdefault("spacings", {})[label] = found
    return groups


def plot(folder: PathLike) -> list[Path]:
    """Draw `noise_schedules` and, for each group, `placements` into PNG files of the folder, which is made. Returns the files.
    Raises MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Drawing needs matplotlib.", where="schedulers, plot", fix="pip install matplotlib") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for label, (t, level) in noise_schedules().items():
        axes.plot(t, level, label=label, linestyle="--" if "zero" in label else ":" if "flow" in label else "-")
    axes.set(xlabel="t / T", ylabel="log-SNR", title="Noise schedules")
    axes.legend(fontsize="small", ncols=2)
    files = [folder / "noise_schedules.png"]
    figure.savefig(files[0], dpi=120)
    for group, rows in placements().items():
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, level in enumerate(rows.values()):
            axes.plot(level, np.full(len(level), place), marker="|", markersize=10, linewidth=0.5)
        axes.set(xlabel="log-SNR, from noise to data", title=f"Where {STEPS} steps are: {group}")
        axes.set_yticks(range(len(rows)), labels=list(rows))
        axes.invert_yaxis()
        files.append(folder / f"steps_{group}.png")
        figure.savefig(files[-1], dpi=120)
    return files
