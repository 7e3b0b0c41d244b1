"""Skip-layer guidance."""

from __future__ import annotations
from collections.abc import Sequence
from typing import Any
from ..attention import Attend, nothing
from ..types import Step
from .common import Scale
from .perturbed import Layers, Perturbation

__all__ = ["SLG"]


class SLG(Perturbation):
    """scale (cond - skipping), where the skipping prediction leaves out some layers: they add nothing to what they read (Stable Diffusion 3.5;
    spatio-temporal guidance, Hyung et al. 2024). For anatomy and coherence; 2 to 3, in the first fifth of a run.
    Args:
        scale: 0 or more; 0 costs nothing. A number, or a function of the timestep.
        layers: regular expressions for dotted names of attention and feed-forward layers. A transformer block is skipped whole by its name,
            such as `transformer_blocks.7`; one layer of it by its own, such as `transformer_blocks.7.attn1`. None is the middle of the network.
        start, stop: the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    Raises InputError for values outside these ranges and for a pattern that matches no layer.
    """

    def __init__(self, scale: Scale = 2.8, layers: Layers = None, *, start: float = 0.01, stop: float = 0.2):
        super().__init__(scale, layers, start, stop)

    def candidates(self, pipe: Any) -> Sequence[str]:
        return pipe.residual_sites()  # type: ignore[no-any-return]

    def replacement(self, step: Step, attend: Attend) -> Attend:
        return nothing
