"""The schedulers in a table, read off the classes."""

from __future__ import annotations
import inspect
from typing import Literal, NamedTuple
from .. import schedulers
from .base import Scheduler, SigmaScheduler

__all__ = ["Row", "describe"]

Draws = Literal["yes", "no", "optional"]
METHODS = ("step", "step_pred", "add_noise_to_input")  # a step of a run, or a part of one
SIGNS = {"generator", "s_noise"}  # what these take where they may draw noise; and what has a form without noise among its choices
SWITCHES = {"algorithm_type", "eta", "noise_scale", "s_churn", "stochastic_sampling", "t_lim_ode", "tau_func"}
UNTOLD: dict[str, Draws] = {  # where signatures do not tell
    "BlockRefinementScheduler": "optional",  # nothing is drawn at temperature 0 from masks, its defaults
    "CogVideoXDDIMScheduler": "no",  # `eta` and `generator` are taken and not heeded
    "CogVideoXDPMScheduler": "yes",  # `eta` is not heeded
    "DPMSolverMultistepInverseScheduler": "no",  # its SDE forms have no value: the noise's variance would be negative
    "HeliosScheduler": "no",  # the `generator` is not heeded
    "RePaintScheduler": "yes",  # `eta` is for the unknown part; the known one is always drawn
}


class Row(NamedTuple):
    """One scheduler: what it samples, its order of convergence, network evaluations per step, whether steps draw noise ("optional": an option
    decides), and the source.
    """

    name: str
    kind: str
    order: str
    evaluations: int
    stochastic: Draws
    paper: str


def describe() -> list[Row]:
    """All schedulers, by name."""
    kinds = [getattr(schedulers, name) for name in schedulers.__all__]
    return [_row(kind) for kind in kinds if issubclass(kind, Scheduler) and hasattr(kind, "Config")]


def _row(kind: type[Scheduler]) -> Row:
    takes = {name for method in METHODS if hasattr(kind, method) for name in inspect.signature(getattr(kind, method)).parameters}
    told: Draws = "no" if not takes & SIGNS else "optional" if (takes | {*kind.Config.names()}) & SWITCHES else "yes"
    both = issubclass(kind, SigmaScheduler) and kind.kind == "diffusion" and kind._flows()
    name = "diffusion, flow" if both else kind.kind
    return Row(kind.__name__, name, kind.accuracy, kind.order, UNTOLD.get(kind.__name__, told), kind.paper)
