"""What guidance objects and terms share: scales, intervals, layers by name."""

from __future__ import annotations
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor
from ...errors import ConfigError, InputError
from ..types import Branch, Conditioning, Step, Term

__all__ = [
    "Addend",
    "Scale",
    "as_x0",
    "check",
    "check_interval",
    "inside",
    "map_size",
    "matching",
    "projected",
    "scale_at",
    "signal_and_noise",
]

Scale = float | Callable[[float], float]  # a number, or one for each timestep


def check(where: str, value: Any, low: float = 0.0, high: float = math.inf) -> None:
    """Raise InputError unless `value` is a number in [low, high]; a Python, numpy or torch scalar."""
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not low <= number <= high:
        expected = f"a number of at least {low}" if high == math.inf else f"a number from {low} to {high}"
        raise InputError("A number out of range.", where=where, got=value, expected=expected)


def check_scale(where: str, scale: Any) -> None:
    if not callable(scale):
        check(where, scale, high=1e9)


def check_interval(where: str, start: Any, stop: Any) -> None:
    """Raise InputError unless 0 <= start <= stop <= 1."""
    check(f"{where}.start", start, high=1.0)
    check(f"{where}.stop", stop, high=1.0)
    if stop < start:
        raise InputError("The interval is reversed.", where=where, got=f"start {start}, stop {stop}", expected="start <= stop")


def scale_at(scale: Scale, step: Step, where: str) -> Any:
    """The scale at the step's timestep; InputError for a negative or infinite one."""
    if not callable(scale):
        return scale
    value = scale(float(step.t))
    check(f"{where}.scale", value, high=1e9)
    return value


def inside(step: Step, start: float, stop: float, *, after: bool = False) -> bool:
    """Whether the step lies in that part of the run; `after`, beyond the step on which a `start` above 0 falls."""
    count = len(step.run.timesteps)
    return int(start * count) + (after and start > 0) <= step.run.index < int(stop * count)


def _matches(pattern: str, site: str) -> bool:
    """`blocks.1` names block 1 and the layers inside it, not the last number of a dotted name by chance."""
    tail, end = pattern.rsplit(".", 1)[-1], site.rsplit(".", 1)[-1]
    return re.search(pattern, site) is not None and not (tail.isnumeric() and tail == end)


def matching(layers: str | Iterable[str], sites: Sequence[str], where: str) -> frozenset[str]:
    """The sites that the regular expressions `layers` name; InputError for one that names none."""
    chosen: set[str] = set()
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if not patterns:
        raise InputError("No layer is named.", where=where, got=layers, expected="at least one regular expression")
    for pattern in patterns:
        try:
            found = {site for site in sites if _matches(pattern, site)}
        except re.error as error:
            raise InputError("This is no regular expression.", where=where, got=pattern, expected=str(error)) from None
        if not found:
            expected = "part of a name such as " + ", ".join(sorted(sites)[:3]) if sites else "a network that has such layers"
            raise InputError("No layer has such a name.", where=where, got=pattern, expected=expected)
        chosen |= found
    return frozenset(chosen)


def projected(x: Tensor, onto: Tensor, parallel: float, axes: tuple[int, ...]) -> Tensor:
    """`x` with the part that is parallel to `onto` weighed by `parallel`, over `axes`, in float64 (Sadat et al. 2025, alg. 1)."""
    unit = F.normalize(onto.double(), dim=axes)  # type: ignore[arg-type]
    along = (x.double() * unit).sum(axes, keepdim=True) * unit
    return (x.double() - along).to(x.dtype) + parallel * along.to(x.dtype)


def map_size(step: Step, tokens: int) -> tuple[int, int]:
    """Height and width of a map of at most so many tokens: the latents', halved as often as it takes."""
    height, width = step.x.shape[-2:]
    while height * width > tokens:
        height, width = -(-height // 2), -(-width // 2)
    return height, width


def signal_and_noise(step: Step, like: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """alpha and sigma with x = alpha x0 + sigma eps for the step's latents; ConfigError where the scheduler cannot say."""
    scheduler = step.run.scheduler
    if not hasattr(scheduler, "signal_and_noise"):
        what, fix = "This scheduler does not state its signal and noise.", "Take another, such as DDIMScheduler or EulerDiscreteScheduler."
        raise ConfigError(what, where=where, got=type(scheduler).__name__, fix=fix)
    return scheduler.signal_and_noise(step.t, like)  # type: ignore[no-any-return]


def as_x0(step: Step, where: str, *preds: Tensor) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """x0 of predictions (B, ...), in float32 at least, and the function that takes an x0 back to a prediction: x0 is a straight line of it."""
    like = preds[0]
    alpha, sigma = signal_and_noise(step, like, where)
    every = (torch.zeros_like(like), torch.ones_like(like), *preds)
    found = (step.run.scheduler.x0_and_eps(step.x, pred, alpha, sigma)[0] for pred in every)
    zero, one, *x0s = (x0.to(torch.promote_types(like.dtype, torch.float32)) for x0 in found)
    return x0s, lambda x0: ((x0 - zero) / (one - zero)).to(like.dtype)


class Addend(Term):
    """The base of the terms: `scale` (0 or more; 0 costs nothing), a number or f(timestep), from `start` to `stop`, shares of the run in [0, 1].
    A `start` above 0 leaves out the step on which it falls: 0.01 is all steps but the first.
    """

    needs_negative = False

    def __init__(self, scale: Scale, start: float = 0.0, stop: float = 1.0):
        check_scale(f"{type(self).__name__}.scale", scale)
        check_interval(type(self).__name__, start, stop)
        self.scale, self.start, self.stop = scale, start, stop

    def weight(self, step: Step) -> Any:
        return scale_at(self.scale, step, type(self).__name__)

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        return cond

    def active(self, step: Step) -> bool:
        return inside(step, self.start, self.stop, after=True) and scale_at(self.scale, step, type(self).__name__) > 0

    def wrap(self, step: Step) -> Conditioning:
        return step.cond

    def branches(self, step: Step) -> Sequence[Branch]:
        return ()

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        return self.weight(step) * (cond - extra[0]) if extra else cond.new_zeros(())
