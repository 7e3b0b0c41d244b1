"""The schedulers in a table, read off the classes."""

from __future__ import annotations
from typing import Literal, NamedTuple
from .. import schedulers
from .base import Scheduler, SigmaScheduler

__all__ = ["Row", "describe"]


class Row(NamedTuple):
    """One scheduler: what it samples, its order of convergence, network evaluations per step, whether steps draw noise ("optional": an option
    decides), and the source."""

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
    both = issubclass(kind, SigmaScheduler) and kind.kind == "diffusion" and kind._flows()
    name = "diffusion, flow" if both else kind.kind
    return Row(kind.__name__, name, kind.accuracy, kind.order, kind.draws, kind.paper)
