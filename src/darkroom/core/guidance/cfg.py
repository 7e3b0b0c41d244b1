"""Classifier-free guidance, and the base of those that combine its two predictions in another way."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from torch import Tensor
from ..types import Conditioning, Step, Term
from .common import Scale, check, check_interval, check_scale, inside, scale_at

__all__ = ["CFG", "rescale"]


def rescale(guided: Tensor, cond: Tensor, weight: float) -> Tensor:
    """Bring the spread of the guided prediction (B, ...) back towards that of the conditional one (Lin et al. 2023, eq. 15 and 16); `weight` in
    [0, 1] blends between `guided` and the rescaled prediction.
    """
    axes = tuple(range(1, cond.ndim))
    scaled = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return weight * scaled + (1 - weight) * guided


class CFG:
    """uncond + scale (cond - uncond) + terms (Ho & Salimans 2022), the guidance that networks are trained for; 3 to 10 for most.
    Args:
        scale: the weight of the prompt, 0 or more; at 1 or below there is no unconditional branch. Or a function of the timestep (as the
            scheduler counts it, a float) that gives the weight at each step.
        rescale: the weight of the function `rescale`, in [0, 1]; 0.7 counters overexposure.
        terms: further addends, such as `PAG(3.0)` and `SAG(0.75)`. They have intervals of their own.
        start, stop: the part of the run, 0 <= start <= stop <= 1, in which the unconditional branch is computed; outside of it the prediction
            is the conditional one, plus terms (Kynkäänniemi et al. 2024). Of n steps these are int(start n) to int(stop n) - 1.
        use_original_formulation: cond + scale (cond - uncond), as in the paper; no guidance is then 0 instead of 1.
    Raises InputError for values outside these ranges.
    """

    def __init__(
        self, scale: Scale = 7.5, rescale: float = 0.0, terms: Sequence[Term] = (), *, start: float = 0.0, stop: float = 1.0,
        use_original_formulation: bool = False,
    ):  # fmt: skip
        self.scale, self.rescale, self.terms = scale, rescale, tuple(terms)
        self.start, self.stop, self.use_original_formulation = start, stop, use_original_formulation
        for one in self._scales:
            check_scale(f"{type(self).__name__}.scale", one)
        check(f"{type(self).__name__}.rescale", rescale, high=1.0)
        check_interval(type(self).__name__, start, stop)

    @property
    def _scales(self) -> tuple[Any, ...]:
        """What `combine` gets at each step, as numbers."""
        return (self.scale,)

    @property
    def neutral(self) -> float:
        """The scale that is no guidance."""
        return 0.0 if self.use_original_formulation else 1.0

    @property
    def needs_negative(self) -> bool:
        """Whether there is an unconditional branch at any step."""
        return self.stop > self.start and any(callable(one) or one > self.neutral for one in self._scales)

    @property
    def reads_negative(self) -> bool:
        """Whether a term needs the negative prompt, with or without a branch of it."""
        return any(getattr(term, "needs_negative", False) for term in self.terms)

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        for term in self.terms:
            cond = term.prepare(cond, pipe)
        if not self.needs_negative or getattr(pipe, "guidance_distilled", False):
            return Conditioning(cond.positive)
        return cond

    def __call__(self, step: Step) -> Tensor:
        scales = tuple(scale_at(one, step, type(self).__name__) for one in self._scales)
        guided = inside(step, self.start, self.stop) and any(one > self.neutral for one in scales)
        step = replace(step, cond=step.run.cond if guided else Conditioning(step.run.cond.positive))
        terms = [term for term in self.terms if term.active(step)]
        for term in terms:
            step = replace(step, cond=term.wrap(step))
        own = [term.branches(step) for term in terms]
        known = [branch for branch in (step.cond.negative, step.cond.positive) if branch is not None]
        preds = step.predict([*known, *(branch for branches in own for branch in branches)])
        base, positive, rest = preds[0], preds[len(known) - 1], iter(preds[len(known) :])
        pred = positive if step.cond.negative is None else self.combine(step, base, positive, *scales)
        for term, branches in zip(terms, own, strict=True):
            pred = pred + term.push(step, base, positive, [next(rest) for _ in branches])
        if self.rescale > 0 and step.cond.negative is not None:
            pred = rescale(pred, positive, self.rescale)
        return pred

    def combine(self, step: Step, uncond: Tensor, cond: Tensor, scale: Any) -> Tensor:
        """One prediction out of two (B, ...). This is what other guidances replace."""
        return self.along(uncond, cond, scale, cond - uncond)

    def along(self, uncond: Tensor, cond: Tensor, scale: Any, direction: Tensor) -> Tensor:
        """`scale` times the direction, from where the formulation starts."""
        return (cond if self.use_original_formulation else uncond) + scale * direction
