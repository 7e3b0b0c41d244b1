"""What a pipeline does in all of its calls beside guidance: merged tokens, further prompts. Each is a term, and each call has its own copy."""

from __future__ import annotations
import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from ..core.guidance import PromptFusion, PromptPart, TokenMerging
from ..errors import InputError

__all__ = ["Decorated"]


class Decorated:
    """A mixin of pipelines. What is switched on belongs to the pipeline; those that are made from it by `from_pipe` begin with it."""

    _decorators: Mapping[str, Any] = MappingProxyType({})

    if TYPE_CHECKING:
        denoiser: Any
        self_attention_sites: Any

    def enable_token_merging(self, ratio: float = 0.5, levels: int = 1, *, seed: int = 0) -> None:
        """Merge this share of the tokens that are most alike in self-attention over the `levels` largest maps, see `TokenMerging`."""
        term = TokenMerging(ratio, levels, seed=seed)
        term.prepare(None, self)  # raises where there is nothing to merge
        self._decorate(token_merging=term)

    def disable_token_merging(self) -> None:
        """Attend to every token again."""
        self._decorate(token_merging=None)

    def enable_prompt_fusion(self, parts: Sequence[PromptPart | str], layers: str | Sequence[str] | None = None, **options: Any) -> None:
        """Read these prompts beside, or in turn with, the one of each call, see `PromptFusion`."""
        if not hasattr(self, "encode_prompt"):
            got, expected = type(self).__name__, "a pipeline with prompts"
            raise InputError("There are no prompts to mix.", where="enable_prompt_fusion", got=got, expected=expected)
        self._decorate(prompt_fusion=PromptFusion(parts, layers, **options))

    def disable_prompt_fusion(self) -> None:
        """Read the prompt of the call alone again."""
        self._decorate(prompt_fusion=None)

    def _decorate(self, **terms: Any) -> None:
        """Switch on or, with None, off. The mapping is replaced, not changed: calls in other threads go on with theirs."""
        self.__dict__["_decorators"] = {name: term for name, term in {**self._decorators, **terms}.items() if term is not None}

    def inherit(self, source: Any) -> None:
        super().inherit(source)  # type: ignore[misc]
        self.__dict__["_decorators"] = dict(getattr(source, "_decorators", {}))

    def decorated(self, guidance: Any) -> Any:
        """A call's guidance with the pipeline's terms before its own, which so have the last word."""
        if self._decorators:
            if not hasattr(guidance, "terms"):
                got, expected = type(guidance).__name__, f"one with terms, such as CFG, for {', '.join(self._decorators)}"
                raise InputError("This guidance takes no terms.", where="guidance", got=got, expected=expected)
            guidance.terms = (*copy.deepcopy([*self._decorators.values()]), *guidance.terms)
        return guidance
