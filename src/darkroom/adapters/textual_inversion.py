"""Textual inversion: words whose embeddings were trained (Gal et al. 2022), private to a pipeline."""

from __future__ import annotations
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
import torch
from torch import Tensor
from ..errors import CheckpointError, InputError
from ..runtime.align import align
from ..runtime.textual_inversion import LearnedEmbedding, expand, names_of, taught

if TYPE_CHECKING:
    from ..checkpoints.files import PathLike

    Source = PathLike | Mapping[str, Any] | Tensor

__all__ = ["TextualInversion"]

NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}  # names of tensors in files for two encoders
NAMELESS = "emb_params"  # what some programs call the tensor, whatever the word
MOST = 1000  # vectors of a word


class Learned(NamedTuple):
    """What a file holds: a word, if it names one, and for each encoder ("" is the first) its vectors (m, d)."""

    word: str | None
    vectors: Mapping[str, Tensor]
    where: str


class TextualInversion:
    """A mixin for pipelines that read prompts by `tokenizer` and `text_encoder`, or by `tokenizer_2` and `text_encoder_2` beside them."""

    if TYPE_CHECKING:
        components: Any
        device: Any
        device_plan: Any
        register_modules: Any

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        """Prompts with learned words of several vectors written out, as the tokenizer needs them: "<cat>" as "<cat> <cat>_1". Calls do it, too."""
        return [expand(p, tokenizer) for p in prompt] if isinstance(prompt, list) else expand(prompt, tokenizer)

    def load_textual_inversion(
        self, pretrained_model_name_or_path: Source | list[Source], token: str | list[str] | None = None, tokenizer: Any = None,
        text_encoder: Any = None, *, weight_name: str | None = None, subfolder: str | None = None, use_safetensors: bool | None = None,
        hf_token: str | bool | None = None, **hub: Any,
    ) -> dict[str, int]:  # fmt: skip
        """Learn words, all of them or none. Other pipelines with the same weights do not know them.
        Args:
            pretrained_model_name_or_path: a folder or hub id with `learned_embeds.safetensors` or `.bin`; a file in that layout ({word: tensor}),
                in AUTOMATIC1111's, or for the two encoders of SDXL ("clip_l", "clip_g"); such tensors by name; a tensor (d,) or (vectors, d);
                or a list of these.
            token: the word in place of the file's, one for each source; several for one source are the words of its vectors.
            tokenizer, text_encoder: the pipeline's own that learn; by default the first, or those that the file names.
            weight_name, subfolder: which file. `hf_token` is the hub's; further options are `revision`, `cache_dir` and so on.
        Returns:
            the words, each with its number of vectors.
        Raises:
            CheckpointError: no such file, one that is damaged or of another kind, values that are not finite, vectors of another width.
            InputError: a word that the tokenizer knows already, or that is missing; another number of words; no such encoder.
        """
        given = pretrained_model_name_or_path
        sources = [*given] if isinstance(given, (list, tuple)) else [given]
        options = {"weight_name": weight_name, "subfolder": subfolder, "use_safetensors": use_safetensors, "token": hf_token, **hub}
        found = [_parse(source, options) for source in sources]
        words = [*token] if isinstance(token, (list, tuple)) else [token]  # type: ignore[list-item]
        if len(found) == 1 and len(words) > 1:  # each vector is a word
            found = [found[0]._replace(vectors={k: v[i : i + 1] for k, v in found[0].vectors.items()}) for i in _each(found[0])]
        if len(found) != len(words) and words != [None]:
            raise InputError("Not one word for each.", where="token", got=len(words), expected=len(found))
        pairs = self._encoders(tokenizer, text_encoder)
        new: dict[str, dict[str, Tensor]] = {}
        for learned, word in zip(found, words if len(words) == len(found) else words * len(found)):
            word = learned.word if word is None else word
            if not isinstance(word, str) or not word or word != word.strip():
                got, fix = repr(word), 'Say which word stands for it: token="<cat>".'
                raise InputError("The word is missing.", where=learned.where, got=got, expected="text without spaces around it", fix=fix)
            for encoder, rows in learned.vectors.items():
                encoder = encoder or next(iter(pairs))
                if encoder not in pairs and tokenizer is None and text_encoder is None:
                    got, what = ", ".join(learned.vectors), "The vectors are for encoders that the pipeline does not have."
                    raise CheckpointError(what, where=learned.where, got=got, expected=", ".join(pairs))
                if word in new.setdefault(encoder, {}):
                    raise InputError("A word is given twice.", where="token", got=word)
                new[encoder][word] = rows
        made: dict[str, Any] = {}
        for encoder, rows_of in new.items():
            if encoder in pairs:
                made |= self._taught(pairs[encoder], encoder, rows_of)
        self.register_modules(**made)
        return {word: len(rows) for rows_of in new.values() for word, rows in rows_of.items()}

    def unload_textual_inversion(self, tokens: str | list[str] | None = None, tokenizer: Any = None, text_encoder: Any = None) -> None:
        """Forget these words, or all that were loaded; of one tokenizer and encoder where they are given, else of all that know them.
        Raises InputError for a word that none of them has learned.
        """
        pairs = self._encoders(tokenizer, text_encoder)
        known = {encoder: _learned(self.components[encoder]) for encoder in pairs}
        every = {name: word for words in known.values() for word, rows in words.items() for name in names_of(word, len(rows))}
        gone = [*every] if tokens is None else [tokens] if isinstance(tokens, str) else [*tokens]
        if missing := [word for word in gone if word not in every]:
            got, expected = ", ".join(map(str, missing)), ", ".join(dict.fromkeys(every.values())) or "no words are loaded"
            raise InputError("No such word was loaded.", where="tokens", got=got, expected=expected)
        made: dict[str, Any] = {}
        for encoder, words in known.items():
            kept = {word: rows for word, rows in words.items() if word not in {every[name] for name in gone}}
            if len(kept) < len(words):
                made |= self._replaced(pairs[encoder], encoder, kept)
        self.register_modules(**dict(reversed(made.items())))  # a call in another thread may still read with what it knows

    def _encoders(self, tokenizer: Any, text_encoder: Any) -> dict[str, str]:
        """Encoders and their tokenizers, by name; of those given, which are the pipeline's own."""
        pairs = {f"text_encoder{end}": f"tokenizer{end}" for end in ("", "_2")}
        there = {e: t for e, t in pairs.items() if self.components.get(e) is not None and self.components.get(t) is not None}
        chosen = {
            e: t
            for e, t in there.items()
            if text_encoder in (None, self.components[e]) and (tokenizer is None or tokenizer is self.components[t])
        }
        if not chosen:
            expected = " or ".join(f"pipe.{t} and pipe.{e}" for e, t in there.items()) or "a text encoder with a tokenizer"
            raise InputError("No such encoder is in the pipeline.", where="tokenizer, text_encoder", expected=expected)
        return chosen

    def _taught(self, tokenizer: str, encoder: str, new: Mapping[str, Tensor]) -> dict[str, Any]:
        """The two with further words, by name."""
        words, own, embedding = self.components[tokenizer], self.components[encoder], self.components[encoder].get_input_embeddings()
        known, width = {name.lower() for name in words.added_tokens_encoder}, embedding.weight.shape[1]
        everything = {**_learned(own), **new}
        vocabulary = words.get_vocab()
        for word, rows in new.items():
            if rows.shape[1] != width:
                fix = "It was trained for another base model." if rows.shape[1] not in (1, width) else None
                raise CheckpointError("Vectors of another width.", where=f"{word}, {encoder}", got=rows.shape[1], expected=width, fix=fix)
            for name in names_of(word, len(rows)):
                if name in vocabulary or name.lower() in known:
                    raise InputError("The tokenizer knows this word already.", where="token", got=name, fix="Choose another: token=...")
            number = re.fullmatch(r"(.+)_\d+", word)
            if number and number[1] in everything:
                raise InputError(
                    "The word reads as a further vector of another one.", where="token", got=word, expected=f"not {number[1]}_N"
                )
        return self._replaced(tokenizer, encoder, everything)

    def _replaced(self, tokenizer: str, encoder: str, words: Mapping[str, Tensor]) -> dict[str, Any]:
        knowing, twin = taught(self.components[tokenizer], self.components[encoder], words)
        if self.device_plan is not None and self.device_plan.get(encoder, self.device) != self.device:
            align(twin, self.device)
        return {encoder: twin, tokenizer: knowing}


def _learned(encoder: Any) -> dict[str, Tensor]:
    embedding = encoder.get_input_embeddings()
    return embedding.learned() if isinstance(embedding, LearnedEmbedding) else {}


def _each(learned: Learned) -> range:
    counts = {len(rows) for rows in learned.vectors.values()}
    return range(counts.pop() if len(counts) == 1 else 0)


def _parse(source: Source, options: Mapping[str, Any]) -> Learned:
    from ..checkpoints.adapters import read_adapter

    adapter = read_adapter({NAMELESS: source} if isinstance(source, Tensor) else source, default_names=NAMES, **options)
    word: str | None = None
    if adapter.keys() <= ENCODERS.keys():
        vectors = {ENCODERS[name]: tensor for name, tensor in adapter.items()}
    elif "string_to_param.*" in adapter:
        word, vectors = adapter.metadata.get("name"), {"": adapter["string_to_param.*"]}
    elif len(adapter) == 1:
        ((name, tensor),) = adapter.items()
        word, vectors = None if name == NAMELESS else name, {"": tensor}
    else:
        got, expected = (
            f"{len(adapter)} tensors: {', '.join(sorted(adapter)[:4])}",
            '{word: tensor}, "string_to_param", "clip_l" and "clip_g"',
        )
        raise CheckpointError("Not a file of textual inversion.", where=adapter.where, got=got[:300], expected=expected)
    vectors = {encoder: tensor.detach()[None] if tensor.ndim == 1 else tensor.detach() for encoder, tensor in vectors.items()}
    for tensor in vectors.values():
        if tensor.ndim != 2 or not 0 < len(tensor) <= MOST or not tensor.is_floating_point():
            got, expected = f"{tuple(tensor.shape)} {tensor.dtype}", f"floats (vectors, width), at most {MOST} vectors"
            raise CheckpointError("These are no vectors of a word.", where=adapter.where, got=got, expected=expected)
    return Learned(word, {encoder: torch.clone(tensor) for encoder, tensor in vectors.items()}, adapter.where)
