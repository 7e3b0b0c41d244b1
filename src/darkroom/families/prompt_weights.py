"""Weighted and long prompts: "a (red:1.3) house with a [small] garden", in as many windows of the text encoder as they need.

(x) weighs x by 1.1, [x] by 1 / 1.1, (x:1.3) by 1.3; brackets may be nested, their weights multiply, and a backslash before one makes it a letter.
A bracket that is never closed counts to the end, as in the programs that made this syntax common.
"""

from __future__ import annotations
import re
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..runtime.textual_inversion import expand

__all__ = ["join_windows", "parse_weights", "windowed", "windows_for"]

STEP = 1.1
_TOKEN = re.compile(r"\\[()\[\]\\]|[(\[\]]|(?::\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*)?\)|[^\\()\[\]:]+|.", re.DOTALL)


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts with their weights, neighbours of one weight joined."""
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []  # the bracket, and how many texts stood before it

    def close(factor: float) -> None:
        begin = opened.pop()[1]
        weights[begin:] = [weight * factor for weight in weights[begin:]]

    for found in _TOKEN.finditer(prompt):
        token, number = found[0], found[1]
        if token in ("(", "["):
            opened.append((token, len(texts)))
        elif token.endswith(")") and token[0] != "\\" and opened and opened[-1][0] == "(":
            close(STEP if number is None else float(number))
        elif token == "]" and opened and opened[-1][0] == "[":
            close(1 / STEP)
        else:
            texts.append(token[1:] if len(token) == 2 and token[0] == "\\" else token)
            weights.append(1.0)
    while opened:
        close(STEP if opened[-1][0] == "(" else 1 / STEP)
    joined: list[tuple[str, float]] = []
    for text, weight in zip(texts, weights):
        if joined and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + text, weight
        else:
            joined.append((text, weight))
    return joined


def _tokens(tokenizer: Any, prompt: str) -> list[tuple[int, float]]:
    """Tokens and their weights, without those of beginning and end."""
    parts = [(tokenizer(expand(text, tokenizer), add_special_tokens=False).input_ids, weight) for text, weight in parse_weights(prompt)]
    return [(token, weight) for ids, weight in parts for token in ids]


def windows_for(tokenizer: Any, prompts: Sequence[str]) -> int:
    """How many windows of the encoder the longest of these prompts takes, at least one."""
    return max(1, *(-(-len(_tokens(tokenizer, prompt)) // (tokenizer.model_max_length - 2)) for prompt in prompts))


def windowed(tokenizer: Any, prompts: Sequence[str], windows: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens of the prompts and their weights, (B, W, M) each, in at least so many windows of M tokens; every window has its own beginning and end.

    `tokenizer` is one of CLIP's kind, with tokens for beginning, end and padding.
    """
    length = tokenizer.model_max_length
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    rows = [_tokens(tokenizer, prompt) for prompt in prompts]
    count = max(windows, 1, *(-(-len(row) // (length - 2)) for row in rows))
    ids, weights = torch.full((len(rows), count, length), pad), torch.ones(len(rows), count, length)
    ids[:, :, 0] = tokenizer.bos_token_id
    for r, row in enumerate(rows):
        for w in range(count):
            part = row[w * (length - 2) : (w + 1) * (length - 2)]
            tokens = [token for token, _ in part]
            ids[r, w, 1 : len(part) + 2] = torch.tensor([*tokens, tokenizer.eos_token_id])
            weights[r, w, 1 : len(part) + 1] = torch.tensor([weight for _, weight in part])
    return ids, weights


def join_windows(states: Tensor, weights: Tensor) -> Tensor:
    """States (B W, M, d) of all windows, weighed by (B, W, M) and brought back to the mean that they had, side by side: (B, W M, d)."""
    rows = weights.shape[0]
    states = states.reshape(rows, -1, states.shape[-1])
    weights = weights.reshape(rows, -1, 1).to(states)
    weighed, axes = states * weights, (1, 2)
    kept = states.mean(axes, keepdim=True) / weighed.mean(axes, keepdim=True)
    return torch.where((weights == 1).all(1, keepdim=True), states, weighed * kept)
