"""Prompt fusion: several prompts at once or in turn, mixed in cross-attention."""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
import torch
from torch import Tensor
from ...errors import InputError
from ..attention import Attend, Patch
from ..types import Conditioning, Step
from .common import Addend, Scale, check_interval, check_scale, inside, matching, scale_at
from .perturbed import Layers

__all__ = ["PromptFusion", "PromptPart"]


@dataclass(frozen=True)
class PromptPart:
    """A prompt, how much it weighs and when. `text` None is the prompt of the call. `weight` is a number of 0 or more, or a function of the timestep;
    `start` and `stop` are shares of the run, in [0, 1]. Raises InputError for values outside these ranges."""

    text: str | None
    weight: Scale = 1.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.text, (str, type(None))):
            raise InputError("A prompt is text.", where="PromptPart.text", got=type(self.text).__name__, expected="a string, or None")
        check_scale("PromptPart.weight", self.weight)
        check_interval("PromptPart", self.start, self.stop)

    def at(self, step: Step) -> float:
        """The weight at this step."""
        return float(scale_at(self.weight, step, "PromptPart")) if inside(step, self.start, self.stop) else 0.0


class PromptFusion(Addend):
    """Cross-attention that reads several prompts, each by itself, and gives the mean of what it finds, by their weights. A term that adds nothing
    and asks for no further prediction: prompts that are mixed within the network, or that change over the run.
    Args:
        parts: prompts, as `PromptPart` or as text of weight 1. Where none of them is the call's own prompt (`PromptPart(None)`), that one has
            weight 1 throughout. Where no part has weight, it is read alone.
        layers: regular expressions for dotted names of cross-attention layers, None is all.
        prompt_syntax, clip_skip: how the texts are read, as in a call.
    Raises InputError for no parts, a pattern that matches no layer, and for pipelines without prompts.
    """

    def __init__(
        self, parts: Sequence[PromptPart | str], layers: Layers = None, *, prompt_syntax: str = "plain", clip_skip: int | None = None
    ):
        super().__init__(1.0)
        given = [PromptPart(part) if isinstance(part, str) else part for part in ([parts] if isinstance(parts, str) else parts)]
        if not given or not all(isinstance(part, PromptPart) for part in given):
            raise InputError("There are no prompts.", where="PromptFusion", got=parts, expected="texts, or PromptPart objects")
        self.parts = tuple(given if any(part.text is None for part in given) else [PromptPart(None), *given])
        self.layers, self.prompt_syntax, self.clip_skip = layers, prompt_syntax, clip_skip
        self.contexts: dict[str, Tensor] = {}  # each text's, (1, M, C)
        self.found: dict[str, Any] = {}  # the chosen layers by name
        self.read: dict[
            tuple[str, str], tuple[Tensor, Tensor]
        ] = {}  # keys and values of a text at a layer, (1, h, M, d): the same in all steps

    def prepare(self, cond: Conditioning, pipe: Any) -> Conditioning:
        if not hasattr(pipe, "encode_prompt") or "context" not in cond.positive.cond:
            got = f"{type(pipe).__name__} encodes none"
            raise InputError("There are no prompts to mix.", where="PromptFusion", got=got, expected="a pipeline with prompts")
        modules = {name: m for name, m in pipe.denoiser.named_modules() if getattr(m, "is_cross_attention", False)}
        plain = {name: m for name, m in modules.items() if not hasattr(m, "add_k_proj")}  # those others attend to the picture at once
        self.found = {site: plain[site] for site in matching("." if self.layers is None else self.layers, [*plain], "PromptFusion.layers")}
        options: dict[str, Any] = {"clip_skip": self.clip_skip} if self.clip_skip is not None else {}
        options |= {"prompt_syntax": self.prompt_syntax} if self.prompt_syntax != "plain" else {}
        project = getattr(pipe.denoiser, "encoder_hid_proj", None)
        for text in dict.fromkeys(part.text for part in self.parts if part.text is not None):
            context = pipe.encode_prompt(prompt=text, do_classifier_free_guidance=False, **options)[0]
            self.contexts[text] = project(context) if isinstance(project, torch.nn.Linear) else context
        self.read = {}
        return cond

    def wrap(self, step: Step) -> Conditioning:
        weights: dict[str | None, float] = {}
        for part in self.parts:
            weights[part.text] = weights.get(part.text, 0.0) + part.at(step)
        total, branch = sum(weights.values()), step.cond.positive
        shares = {text: weight / total for text, weight in weights.items() if weight > 0}
        if shares.keys() <= {None}:
            return step.cond
        mixed = partial(self._mixed, shares, branch.attend)
        return Conditioning(branch.with_attention(Patch(branch.attend, frozenset(self.found), mixed)), step.cond.negative)

    def push(self, step: Step, base: Tensor, cond: Tensor, extra: Any) -> Tensor:
        return cond.new_zeros(())

    def _mixed(
        self,
        shares: dict[str | None, float],
        attend: Attend,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        site: str = "",
    ) -> Tensor:
        out = torch.zeros_like(q)
        for text, share in shares.items():
            if text is None:
                out = out + share * attend(q, k, v, mask=mask, site=site)
            else:
                keys, values = (x.to(q).expand(q.shape[0], -1, -1, -1) for x in self._tokens(text, site, q.device))
                out = out + share * attend(q, keys, values, site=site)
        return out

    def _tokens(self, text: str, site: str, device: torch.device) -> tuple[Tensor, Tensor]:
        if (text, site) not in self.read:
            layer, context = self.found[site], self.contexts[text].to(device)
            tokens = layer.keys_and_values(context, context)
            self.read[text, site] = tuple(x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in tokens)  # type: ignore[assignment]
        return self.read[text, site]
