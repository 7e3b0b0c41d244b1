"""Sampling of tokens that were corrupted uniformly, from the exact posterior, with a corrector."""

from __future__ import annotations
import math
from dataclasses import dataclass
from typing import Any, Literal
import torch
from torch import Generator, Tensor
from ..outputs import Output
from .base import Timestep
from .tokens import TokenScheduler, Untabled, draw, gumbel, random_tokens, uniform

__all__ = ["DiscreteDDIMScheduler", "DiscreteDDIMSchedulerOutput"]


@dataclass
class DiscreteDDIMSchedulerOutput(Output):
    """The block after a step; the tokens drawn from the logits and their probabilities; the logits, for self-conditioning."""

    prev_sample: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class DiscreteDDIMConfig(Untabled):
    """`corrector_steps` sweeps after each step resample `corrector_k` positions each, the least certain by `corrector_selection` (the less
    `corrector_selection_tau`, the more strictly).
    """

    num_inference_steps: int = 32
    corrector_steps: int = 0
    corrector_k: int = 1
    corrector_selection: Literal["lowest_log_margin", "lowest_maxprob", "lowest_current_prob", "random"] = "lowest_log_margin"
    corrector_selection_tau: float = 1.0


class DiscreteDDIMScheduler(TokenScheduler):
    """Discrete denoising with the uniform kernel (D3PM: Austin et al. 2021). A token survives to time t with probability alpha = 1 - t, and is
    a uniformly random one otherwise; there is no mask token. Every position is drawn anew from q(x_s | x_t, x0) at every step.

    `step_correct` is the Gibbs corrector of "Uniform Diffusion Models Revisited" (2026): with the logits of the sample that a step gave, it
    draws single positions again from their distribution given all others, which leaves the marginal as it is and improves samples.
    """

    Config = DiscreteDDIMConfig
    paper = "Austin et al. 2021"

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        if not config.corrector_selection_tau > 0:
            self._refuse("corrector_selection_tau", config.corrector_selection_tau, "above 0")

    def _output(self, return_dict: bool, *fields: Tensor) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, ...]:
        return DiscreteDDIMSchedulerOutput(*fields) if return_dict else fields

    def step(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, temperature: float = 0.0, generator: Generator | None = None,
        return_dict: bool = True,
    ) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, ...]:  # fmt: skip
        """The tokens (B, N) at the next time s. With alpha_s the share of intact tokens there, and a = alpha_t / alpha_s, a position becomes the
        predicted token with mass alpha_s (1 - a) / K + a alpha_s [x_t = x0], stays with a (1 - alpha_s) / K, and becomes any token with
        (1 - a) (1 - alpha_s) / K (Austin et al. 2021, eq. 3).
        """
        number, steps, classes = self._step_number(timestep), self.num_inference_steps or 1, model_output.shape[-1]
        tokens, probabilities = self._sample(model_output, temperature, generator)
        alpha_t, alpha_s = number / steps, (number + 1) / steps
        a = alpha_t / alpha_s
        clean = alpha_s * (1 - a) / classes + a * alpha_s * (sample == tokens).float()
        stay, noise = (torch.full_like(clean, share * (1 - alpha_s) / classes) for share in (a, 1 - a))
        routes = torch.stack([clean, stay, noise], -1)
        route = draw(routes / routes.sum(-1, keepdim=True), generator)
        anything = random_tokens(sample, classes, generator)
        prev = torch.where(route == 0, tokens, torch.where(route == 2, anything, sample))
        return self._output(return_dict, prev, tokens, probabilities, model_output)

    def step_correct(
        self, model_output: Tensor, timestep: Timestep, sample: Tensor, *, generator: Generator | None = None, return_dict: bool = True
    ) -> DiscreteDDIMSchedulerOutput | tuple[Tensor, ...]:
        """One sweep of the corrector over the result of `step` at this timestep; `model_output` is of that result. `sampled_tokens` are those of
        the chosen positions, (B, corrector_k).
        """
        classes, alpha = model_output.shape[-1], (self._step_number(timestep) + 1) / (self.num_inference_steps or 1)
        logits = model_output.double()
        if alpha < 1:  # what the other positions say alone: without the evidence of the token itself
            evidence = torch.full((*sample.shape, 1), -math.log1p(classes * alpha / (1 - alpha)), dtype=logits.dtype, device=logits.device)
            logits = logits.scatter_add(-1, sample[..., None], evidence)
        floor = math.log1p(-alpha) - math.log(classes) if alpha < 1 else -math.inf
        clean = math.log(alpha) + logits.log_softmax(-1)
        logs = torch.logaddexp(clean, torch.full_like(clean, floor))
        positions = self._select(sample, logs, generator)
        chosen = logs.gather(1, positions[..., None].expand(-1, -1, classes)).exp()
        tokens = draw(chosen, generator)
        prev = sample.scatter(1, positions, tokens)
        return self._output(return_dict, prev, tokens, chosen.gather(-1, tokens[..., None])[..., 0], model_output)

    def _select(self, sample: Tensor, logs: Tensor, generator: Generator | None) -> Tensor:
        """The positions (B, k) to draw again, without replacement, the least certain first."""
        config, rule = self.config, self.config.corrector_selection
        current = logs.gather(-1, sample[..., None])
        if rule == "lowest_maxprob":
            doubt = -logs.amax(-1)
        elif rule == "lowest_current_prob":
            doubt = -current[..., 0]
        else:
            doubt = logs.scatter(-1, sample[..., None], -math.inf).amax(-1) - current[..., 0]
        u = uniform(sample.shape, sample, generator)
        scores = u if rule == "random" else doubt / config.corrector_selection_tau + gumbel(u, 1e-12)
        return scores.topk(min(max(1, config.corrector_k), sample.shape[1]), dim=-1).indices
