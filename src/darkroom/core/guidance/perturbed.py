"""The base of terms that steer away from what the network predicts with some of its layers impaired."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
from ..attention import Attend, Patch
from ..types import Branch, Conditioning, Step
from .common import Addend, Scale, matching

__all__ = ["Layers", "Perturbation"]

Layers = str | Sequence[str] | None


class Perturbation(Addend):
    """scale (cond - impaired). A subclass says which layers there are to choose from and what stands in for their attention.
    `layers` are regular expressions for dotted names of layers, None the class's own choice; InputError for one that matches none.
    """

    default_layers: str | Sequence[str] = "mid"

    def __init__(self, scale: Scale, layers: Layers = None, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, start, stop)
        self.layers, self.sites = layers, frozenset[str]()

    def candidates(self, pipe: Any) -> Sequence[str]:
        """The dotted names of the layers that can be impaired."""
        return pipe.self_attention_sites()  # type: ignore[no-any-return]

    def chosen(self, pipe: Any) -> str | Sequence[str]:
        return self.default_layers if self.layers is None else self.layers

    def replacement(self, step: Step, attend: Attend) -> Attend:
        """What stands in for `attend` at the chosen layers."""
        raise TypeError(f"{type(self).__name__} does not say how it impairs a layer")

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.sites = matching(self.chosen(pipe), self.candidates(pipe), f"{type(self).__name__}.layers")
        return cond

    def branches(self, step: Step) -> Sequence[Branch]:
        branch = step.cond.positive
        return [branch.with_attention(Patch(branch.attend, self.sites, self.replacement(step, branch.attend)))]
