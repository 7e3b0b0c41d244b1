"""Perturbed-attention guidance."""

from __future__ import annotations
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from torch import Tensor
from ...errors import InputError
from ..attention import Patch
from ..inputs import Inputs, field
from ..types import Branch, Conditioning, Step

__all__ = ["PAG", "PAGInputs"]


@dataclass(kw_only=True)
class PAGInputs(Inputs):
    pag_scale: float = field("Weight of perturbed-attention guidance; 0 switches it off.", 3.0, minimum=0)
    pag_adaptive_scale: float = field("How fast the weight falls with the timestep; 0 keeps it.", 0.0, minimum=0)


def value_only(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = "") -> Tensor:
    """Attention whose map is the identity."""
    return v


def _matches(pattern: str, site: str) -> bool:
    """`blocks.1` names block 1 and the layers inside it, not the last number of a dotted name by chance."""
    tail, end = pattern.rsplit(".", 1)[-1], site.rsplit(".", 1)[-1]
    return re.search(pattern, site) is not None and not (tail.isnumeric() and tail == end)


class PAG:
    """scale (cond - perturbed), where the perturbed prediction has identity maps in some self-attention layers (Ahn et al. 2024, eq. 16).
    The weight is `scale - adaptive_scale (1000 - t)`, not below 0; `scale` is 0 or more, and 0 costs nothing. `layers` are regular
    expressions for the dotted names of self-attention layers, None takes the pipeline's own choice; InputError for one that matches no layer.
    """

    Inputs = PAGInputs
    settings = {"pag_applied_layers": "mid"}

    def __init__(self, scale: float = 3.0, adaptive_scale: float = 0.0, layers: str | Sequence[str] | None = None):
        self.scale, self.adaptive_scale, self.layers = scale, adaptive_scale, layers
        self.sites: frozenset[str] = frozenset()

    @classmethod
    def from_inputs(cls, inputs: Any) -> PAG | None:
        return cls(inputs.pag_scale, inputs.pag_adaptive_scale) if inputs.pag_scale > 0 else None

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        layers = self.layers or getattr(pipe, "pag_applied_layers", None) or self.settings["pag_applied_layers"]
        sites = pipe.self_attention_sites()
        for pattern in [layers] if isinstance(layers, str) else layers:
            found = {site for site in sites if _matches(pattern, site)}
            if not found:
                expected = "part of a name such as " + ", ".join(sorted(sites)[:3])
                raise InputError("No self-attention layer has such a name.", where="pag_applied_layers", got=pattern, expected=expected)
            self.sites |= found
        return cond

    def branches(self, cond: Conditioning) -> Sequence[Branch]:
        positive = cond.positive
        return [positive.with_attention(Patch(positive.attend, self.sites, value_only))] if self.scale > 0 else []

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Sequence[Tensor]) -> Tensor:
        if not extra:
            return cond.new_zeros(())
        scale: Any = self.scale
        if self.adaptive_scale > 0:
            scale = (self.scale - self.adaptive_scale * (1000 - step.t)).clamp_min(0)
        return scale * (cond - extra[0])
