"""Sampling of as many tokens at once as are nearly independent."""

from __future__ import annotations
from dataclasses import dataclass
from typing import Any
import torch
from torch import Generator, Tensor
from ..outputs import Output
from .base import Timestep
from .tokens import TokenScheduler, Untabled, random_tokens

__all__ = ["EntropyBoundScheduler", "EntropyBoundSchedulerOutput"]


@dataclass
class EntropyBoundSchedulerOutput(Output):
    """The block after a step; where tokens were accepted; all drawn tokens and their probabilities; the logits at the step's temperature."""

    prev_sample: Tensor
    accepted_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class EntropyBoundConfig(Untabled):
    """`entropy_bound`, in nats, trades quality for speed; the temperature falls linearly from `t_max` at the first step towards `t_min`."""

    entropy_bound: float = 0.1
    t_max: float = 0.8
    t_min: float = 0.4
    num_inference_steps: int = 32


class EntropyBoundScheduler(TokenScheduler):
    """Entropy-bounded unmasking (Ben-Hamu et al. 2025), for tokens corrupted uniformly. Positions are accepted from the lowest entropy on, while
    the entropies of all but the largest sum to at most `entropy_bound`, which bounds the mutual information between them. The others become
    random tokens again.
    """

    Config = EntropyBoundConfig
    paper = "Ben-Hamu et al. 2025"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if not config.t_min >= 0:
            self._refuse("t_min", config.t_min, "at least 0")
        if not config.t_max > 0:
            self._refuse("t_max", config.t_max, "above 0")

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, entropy_bound: float | None = None,
        generator: Generator | None = None, return_dict: bool = True,
    ) -> EntropyBoundSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The tokens (B, N) after this step; `entropy_bound` replaces the configured one."""
        config, steps = self.config, self.num_inference_steps or 1
        bound = config.entropy_bound if entropy_bound is None else entropy_bound
        fraction = (steps - self._step_number(timestep)) / steps
        logits = model_output / (config.t_min + (config.t_max - config.t_min) * fraction)
        tokens, probabilities = self._sample(logits, 1.0, generator)
        logs = logits - logits.logsumexp(-1, keepdim=True)
        entropies, order = (-(logs.clamp(min=torch.finfo(logs.dtype).min) * logs.softmax(-1)).sum(-1)).sort(-1)
        accepted = entropies.cumsum(-1) - entropies <= bound
        accepted = torch.zeros_like(accepted).scatter(-1, order, accepted)
        prev = torch.where(accepted, tokens, random_tokens(sample, logits.shape[-1], generator))
        fields = (prev, accepted, tokens, probabilities, logits)
        return EntropyBoundSchedulerOutput(*fields) if return_dict else fields
