"""The schedulers for a reader: a table of text, and the figures of their noise schedules and steps."""

from __future__ import annotations
import inspect
from typing import Any
import numpy as np
import torch
from .. import schedulers
from ..errors import InputError, MissingDependencyError
from . import process
from .base import Scheduler
from .catalogue import Row, describe

__all__ = ["LIMIT", "STEPS", "noise_schedules", "placements", "table"]

STEPS = 12
LIMIT = 16.0  # pure noise and data have no log-SNR; pictures end here
ENDS = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012), "sigmoid": (0.0001, 0.02)}  # betas; the other tables have no choice
SPACINGS: list[dict[str, Any]] = [  # of one solver: what its options do to the steps
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    *({f"use_{schedule}_sigmas": True} for schedule in process.SIGMA_SCHEDULES if schedule != "lu"),  # which is the exponential one
    *({"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift} for shift in (1.0, 3.0)),
]  # fmt: skip
NEEDED = {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 2.0, "tsr_sigma": 1.0, "tail_steps": 0}  # options without a default


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
