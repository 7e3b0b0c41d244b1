"""Words that a text encoder learns: rows beside its embedding, which stays what it is and is shared, and a tokenizer that knows them."""

from __future__ import annotations
import copy
import re
from collections.abc import Mapping
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from .fork import fork

__all__ = ["LearnedEmbedding", "expand", "names_of", "taught"]


class LearnedEmbedding(nn.Embedding):
    """An embedding, shared with others, and rows (m, d) of its own for ids from `start` on. Its state dict holds both as one weight.
    `words` says how many rows each word has, in order; `tokenizer` is the one that knows none of them.
    """

    added: Tensor
    start: int
    words: Mapping[str, int]
    tokenizer: Any

    @classmethod
    def beside(cls, plain: nn.Embedding, words: Mapping[str, Tensor], tokenizer: Any) -> LearnedEmbedding:
        twin = fork(plain)
        twin.__class__ = cls
        assert isinstance(twin, cls)
        twin._buffers, twin._non_persistent_buffers_set = {}, {"added"}  # those of `plain` stay apart
        twin.register_buffer("added", torch.cat([*words.values()]).to(plain.weight), persistent=False)
        twin.words, twin.tokenizer = {word: len(rows) for word, rows in words.items()}, tokenizer
        twin.start = len(tokenizer)  # some embeddings have more rows than their tokenizer has tokens
        twin.num_embeddings = twin.start + len(twin.added)
        return twin

    def learned(self) -> dict[str, Tensor]:
        """The rows of each word, (its number, d)."""
        return dict(zip(self.words, self.added.split([*self.words.values()])))

    def plain(self) -> nn.Embedding:
        """The embedding without the words."""
        twin = fork(self)
        twin.__class__ = nn.Embedding  # type: ignore[assignment]
        twin._buffers, twin._non_persistent_buffers_set, twin.num_embeddings = {}, set(), len(self.weight)
        for name in ("words", "tokenizer", "start"):
            del twin.__dict__[name]
        return twin

    def forward(self, ids: Tensor) -> Tensor:
        """(B, M) to (B, M, d)."""
        base = F.embedding(ids.clamp(max=self.start - 1), self.weight)
        return torch.where(ids[..., None] < self.start, base, F.embedding((ids - self.start).clamp(min=0), self.added))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            destination[f"{prefix}weight"] = torch.cat([self.weight.detach()[: self.start], self.added])


def names_of(word: str, count: int) -> list[str]:
    """The tokens of a word of so many vectors: word, word_1, word_2, ..."""
    return [word, *(f"{word}_{i}" for i in range(1, count))]


def taught(tokenizer: Any, encoder: Any, words: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Copies of a tokenizer and of a text encoder of transformers that know these words (m, d) in place of those learned before."""
    twin, embedding = fork(encoder), encoder.get_input_embeddings()
    plain, tokenizer = (embedding.plain(), embedding.tokenizer) if isinstance(embedding, LearnedEmbedding) else (embedding, tokenizer)
    knowing = copy.deepcopy(tokenizer) if words else tokenizer
    if words:
        knowing.add_tokens([token for word, rows in words.items() for token in names_of(word, len(rows))])
    twin.set_input_embeddings(LearnedEmbedding.beside(plain, words, tokenizer) if words else plain)
    if hasattr(twin.config, "vocab_size"):
        twin.config = copy.deepcopy(twin.config)
        twin.config.vocab_size = twin.get_input_embeddings().num_embeddings
    return knowing, twin


def expand(prompt: str, tokenizer: Any) -> str:
    """The prompt with each learned word of several vectors written out: "<cat>" as "<cat> <cat>_1 <cat>_2". One that is so already stays."""
    known = getattr(tokenizer, "added_tokens_encoder", {})
    for word in (word for word in known if f"{word}_1" in known):
        count = next(i for i in range(2, len(known) + 1) if f"{word}_{i}" not in known)
        first, *others = map(re.escape, names := names_of(word, count))
        rest = "".join(rf"\s+{name}" for name in others)
        whole = rf"{first}(?!_\d)(?:{rest})?"
        written = " ".join(names).replace("\\", "\\\\")
        prompt = re.sub(whole, written, prompt, flags=re.IGNORECASE)  # the tokenizer takes "<CAT>" for the word, too
    return prompt
