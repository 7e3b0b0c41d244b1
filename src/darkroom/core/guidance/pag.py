"""Perturbed-attention guidance."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ..attention import Attend
from ..inputs import Inputs, field
from ..types import Conditioning, Step
from .common import Scale, check, matching
from .perturbed import Layers, Perturbation

__all__ = ["PAG", "PAGInputs"]


@dataclass(kw_only=True)
class PAGInputs(Inputs):
    pag_scale: float = field("Weight of perturbed-attention guidance; 0 switches it off.", 3.0, minimum=0)
    pag_adaptive_scale: float = field("How fast the weight falls with the timestep; 0 keeps it.", 0.0, minimum=0)


def value_only(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
    """Attention whose map is the identity."""
    return v


class PAG(Perturbation):
    """scale (cond - perturbed), where the perturbed prediction has identity maps in some self-attention layers (Ahn et al. 2024, eq. 16).
    For structure and detail, also without a prompt; 1 to 5.
    The weight is `scale - adaptive_scale (1000 - t)`, not below 0; `scale` is 0 or more, and 0 costs nothing. `layers` are regular
    expressions for the dotted names of self-attention layers, None takes the pipeline's own choice; InputError for one that matches no layer.
    `start` and `stop` are the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    """

    Inputs = PAGInputs
    settings = {"pag_applied_layers": "mid"}

    def __init__(self, scale: Scale = 3.0, adaptive_scale: float = 0.0, layers: Layers = None, *, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, layers, start, stop)
        check("PAG.adaptive_scale", adaptive_scale)
        self.adaptive_scale = adaptive_scale

    @classmethod
    def from_inputs(cls, inputs: Any) -> PAG | None:
        return cls(inputs.pag_scale, inputs.pag_adaptive_scale) if inputs.pag_scale > 0 else None

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.sites = matching(self.chosen(pipe), self.candidates(pipe), "pag_applied_layers")
        return cond

    def chosen(self, pipe: Any) -> str | Sequence[str]:
        return self.layers or getattr(pipe, "pag_applied_layers", None) or self.settings["pag_applied_layers"]

    def replacement(self, step: Step, attend: Attend) -> Attend:
        return value_only

    def weight(self, step: Step) -> Any:
        scale = super().weight(step)
        return (scale - self.adaptive_scale * (1000 - step.t)).clamp_min(0) if self.adaptive_scale > 0 and scale > 0 else scale
