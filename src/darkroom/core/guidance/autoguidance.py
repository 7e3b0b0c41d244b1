"""Autoguidance: away from a bad version of the same network."""

from __future__ import annotations
import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any
import torch
from torch import Tensor
from ...errors import ConfigError, InputError
from ..attention import Attend, nothing
from ..types import Branch, Conditioning, Step
from .common import Scale, check
from .perturbed import Layers, Perturbation

__all__ = ["AutoGuidance"]


class AutoGuidance(Perturbation):
    """scale (cond - bad), where a bad version of the network predicts for the same prompt (Karras et al. 2024, with w = scale + 1).
    For quality without the loss of variety that CFG costs; 0.5 to 2, in place of CFG (`CFG(1, terms=[AutoGuidance(1, dropout=0.1)])`) or with it.
    Args:
        scale: 0 or more; 0 costs nothing. A number, or a function of the timestep.
        dropout: the share in (0, 1] of what attention layers give that is dropped, by masks that are the same for all pictures; 1 skips the layers.
        network: a bad network in place of dropout, smaller or less trained, with the same inputs and outputs.
        layers: for dropout, regular expressions for dotted names of self-attention layers, None is all.
        seed: of the dropout.
        start, stop: the part of the run, in [0, 1]; a `start` above 0 leaves out the step on which it falls.
    Raises InputError for values outside these ranges, unless exactly one of `dropout` and `network` is given, and for a pattern that matches no
    layer; ConfigError for a network with other inputs or outputs.
    """

    default_layers = "."

    def __init__(
        self, scale: Scale = 1.0, *, dropout: float | None = None, network: Any = None, layers: Layers = None, seed: int = 0,
        start: float = 0.0, stop: float = 1.0,
    ):  # fmt: skip
        super().__init__(scale, layers, start, stop)
        if (dropout is None) == (network is None):
            raise InputError("The bad version is one of two.", where="AutoGuidance", expected="either dropout or network")
        if dropout is not None:
            check("AutoGuidance.dropout", dropout, high=1.0)
            if dropout == 0:
                raise InputError(
                    "Without dropout the network is as good as before.", where="AutoGuidance.dropout", got=0, expected="above 0"
                )
        self.dropout, self.network, self.seed = dropout, network, seed
        self.generator: torch.Generator | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoGuidance:
        twin = memo[id(self)] = copy.copy(self)
        twin.__dict__ |= {name: copy.deepcopy(v, memo) for name, v in vars(self).items() if name != "network"}  # the weights are shared
        return twin

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        self.generator = torch.Generator().manual_seed(self.seed)
        if self.network is None:
            return super().prepare(cond, pipe)
        for name in ("in_channels", "out_channels", "cross_attention_dim"):
            got, expected = (getattr(getattr(net, "config", None), name, None) for net in (self.network, pipe.denoiser))
            if got != expected:
                raise ConfigError("The bad network is of another kind.", where=f"AutoGuidance.network: {name}", got=got, expected=expected)
        return cond

    def replacement(self, step: Step, attend: Attend) -> Attend:
        return nothing if self.dropout == 1 else partial(self._dropped, self.dropout, attend)

    def _dropped(
        self, share: Any, attend: Attend, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, site: str = ""
    ) -> Tensor:
        out = attend(q, k, v, mask=mask, site=site)
        kept = torch.rand(out.shape[1:], generator=self.generator) >= share  # (h, N, d)
        return out * kept.to(out) / (1 - share)

    def branches(self, step: Step) -> Sequence[Branch]:
        if self.network is None:
            return super().branches(step)
        return [replace(step.cond.positive, attend=self.network.attend, network=self.network)]
