"""The schedulers in a table, read off the classes."""

from __future__ import annotations
import inspect
from typing import Literal, NamedTuple
from .. import schedulers
from .base import Scheduler, SigmaScheduler

__all__ = ["Row", "describe"]

# what `step` takes where a step may draw noise; and what turns the noise off
DRAWS = {"generator", "s_noise"}
SWITCHES = {"eta", "s_churn", "algorithm_type", "noise_scale", "stochastic_sampling", "tau_func"}


class Row(NamedTuple):
    """One scheduler: what it samples, its order of convergence, network evaluations per step, whether steps draw noise, and the source."""

    name: str
    kind: str
    order: str
    evaluations: int
    stochastic: Literal["yes", "no", "optional"]
    paper: str


def describe() -> list[Row]:
    """All schedulers, by name."""
    kinds = [getattr(schedulers, name) for name in schedulers.__all__]
    return [_row(kind) for kind in kinds if issubclass(kind, Scheduler) and hasattr(kind, "Config")]


def _row(kind: type[Scheduler]) -> Row:
    takes = {*inspect.signature(kind.step).parameters} if hasattr(kind, "step") else set()
    stochastic: Literal["yes", "no", "optional"] = "no"
    if takes & DRAWS:
        stochastic = "optional" if (takes | {*kind.Config.names()}) & SWITCHES else "yes"
    both = issubclass(kind, SigmaScheduler) and kind.kind == "diffusion" and kind._flows()
    return Row(kind.__name__, "diffusion, flow" if both else kind.kind, kind.accuracy, kind.order, stochastic, kind.paper)
