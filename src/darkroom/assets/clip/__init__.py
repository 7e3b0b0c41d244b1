"""The vocabulary of CLIP (Radford et al. 2021), for checkpoints that come without a tokenizer: see LICENSE in this folder."""

from __future__ import annotations
import gzip
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["END", "START", "clip_tokenizer", "merges", "vocabulary"]

START, END = "<|startoftext|>", "<|endoftext|>"


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """The 48894 merges of the byte-pair encoding, the earliest first; "</w>" ends a word."""
    text = gzip.decompress((Path(__file__).parent / "merges.txt.gz").read_bytes()).decode("utf-8")
    return tuple((left, right) for left, _, right in (line.partition(" ") for line in text.splitlines()))


def vocabulary() -> dict[str, int]:
    """Token -> number: the 256 bytes, inside a word and at its end, then what the merges make, then the ends of a text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + i) for i in range(256 - len(printable))]  # stand-ins for bytes that do not print
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges()), START, END]
    return {token: number for number, token in enumerate(tokens)}


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """A tokenizer of 49408 tokens, texts of 77. Of OpenAI's own CLIP the padding is "<|endoftext|>", of OpenCLIP's models "!" (token 0)."""
    from transformers import CLIPTokenizer

    ends = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    return CLIPTokenizer(vocab=vocabulary(), merges=list(merges()), model_max_length=77, **ends)
