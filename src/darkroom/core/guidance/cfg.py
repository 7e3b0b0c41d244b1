"""Classifier-free guidance."""

from collections.abc import Sequence
from typing import Any
from torch import Tensor
from ..types import Conditioning, Step, Term

__all__ = ["CFG", "rescale"]


def rescale(guided: Tensor, cond: Tensor, weight: float) -> Tensor:
    """Bring the spread of the guided prediction (B, ...) back towards that of the conditional one (Lin et al. 2023, eq. 15 and 16); `weight` in
    [0, 1] blends between `guided` and the rescaled prediction.
    """
    axes = tuple(range(1, cond.ndim))
    scaled = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return weight * scaled + (1 - weight) * guided


class CFG:
    """uncond + scale (cond - uncond) + terms (Ho & Salimans 2022).
    `scale` is the weight of the prompt; at 1 or below there is no unconditional branch. `rescale` in [0, 1] is the weight of the function
    `rescale`, and `terms` are further addends, such as `PAG(3.0)` and `SAG(0.75)`.
    """

    def __init__(self, scale: float = 7.5, rescale: float = 0.0, terms: Sequence[Term] = ()):
        self.scale, self.rescale, self.terms = scale, rescale, tuple(terms)

    @property
    def needs_negative(self) -> bool:
        return self.scale > 1

    def weight(self, pred: Tensor) -> Any:
        """The scale for a prediction, as a number or broadcastable to it."""
        return self.scale

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        for term in self.terms:
            cond = term.prepare(cond, pipe)
        return cond

    def __call__(self, step: Step) -> Tensor:
        cond = step.run.cond
        own = [term.branches(cond) for term in self.terms]
        known = [cond.positive] if cond.negative is None else [cond.negative, cond.positive]
        preds = step.predict([*known, *(branch for branches in own for branch in branches)])
        base, positive, rest = preds[0], preds[len(known) - 1], iter(preds[len(known) :])
        guided = positive if cond.negative is None else base + self.weight(positive) * (positive - base)
        for term, branches in zip(self.terms, own, strict=True):
            guided = guided + term.push(step, base, positive, [next(rest) for _ in branches])
        if self.rescale > 0 and cond.negative is not None:
            guided = rescale(guided, positive, self.rescale)
        return guided
