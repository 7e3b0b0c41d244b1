"""Prompts through a CLIP text encoder, shared by the families that are conditioned on its states."""

import logging
import threading
from collections.abc import Sequence
from typing import Any
import torch
from torch import Tensor
from ..core.strength import adapters_at
from ..errors import InputError
from ..runtime.textual_inversion import expand
from .prompt_weights import join_windows, windowed

__all__ = ["encode_states", "encode_text", "guidance_embedding", "prompt_list", "tokenize"]

logger = logging.getLogger("darkroom")
_TOKENIZING = threading.Lock()  # a fast tokenizer keeps its padding and truncation settings in itself


def prompt_list(value: Any, where: str) -> list[str]:
    """A prompt or a list of prompts as a list."""
    if value is None:
        raise InputError("There is nothing to picture.", where=where, expected=f"{where} or {where}_embeds")
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
        inside = sorted({type(p).__name__ for p in value}) if isinstance(value, (list, tuple)) else None
        got = type(value).__name__ + ("" if inside is None else f" of {', '.join(inside) or 'nothing'}")
        raise InputError("A prompt is text.", where=where, got=got, expected="a string or a list of strings")
    return list(prompts)


def tokenize(tokenizer: Any, prompts: Sequence[str], warn: bool = True, length: int | None = None) -> Any:
    """Prompts as `input_ids` and `attention_mask`, (B, M), padded or cut to `length`, by default what the encoder reads."""
    with _TOKENIZING:
        length, prompts = length or tokenizer.model_max_length, [expand(prompt, tokenizer) for prompt in prompts]
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        whole = tokenizer(prompts).input_ids if warn else []
    for lost in (tokenizer.decode(ids[length - 1 : -1]) for ids in whole if len(ids) > length):
        logger.warning(f"The prompt is longer than the {length} tokens that its encoder reads; dropped: {lost!r}")
    return batch


def _read(
    tokenizer: Any, prompts: Sequence[str], device: Any, warn: bool, length: int | None, windows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Token ids and their mask, (B, M), or with `windows` (B W, M) of prompts with weights, and the weights (B, W, M)."""
    if windows:
        ids, weights = windowed(tokenizer, prompts, windows)
        ids = ids.flatten(0, 1).to(device)
        return ids, torch.ones_like(ids), weights
    batch = tokenize(tokenizer, prompts, warn, length)
    return batch.input_ids.to(device), batch.attention_mask.to(device), None


def encode_text(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], *, device: Any, clip_skip: int | None = None, warn: bool = True,
    length: int | None = None, windows: int = 0, lora_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """The encoder's last states, or those `clip_skip` layers before under the final norm: (B, M, d). With `windows` the prompts may have weights,
    and as many windows of tokens as that lie side by side: (B, W M, d). `lora_scale` weighs the encoder's adapters."""
    ids, mask, weights = _read(tokenizer, prompts, device, warn, length, windows)
    options = {"attention_mask": mask if getattr(encoder.config, "use_attention_mask", False) else None}
    with adapters_at(lora_scale):
        out = encoder(ids, **options, output_hidden_states=clip_skip is not None)
    if clip_skip is None:
        states = out[0]
    else:
        states = hidden_states(out, clip_skip, clip_skip)
        states = getattr(encoder, "text_model", encoder).final_layer_norm(states)
    return states if weights is None else join_windows(states, weights)


def encode_states(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], *, device: Any, clip_skip: int = 0, length: int | None = None, warn: bool = True,
    windows: int = 0, lora_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The states below the last layer, or `clip_skip` layers further down, without a norm: (B, M, d). Of an encoder with a projection the pooled
    prompt, too: (B, c), of the first window. `windows` as for `encode_text`."""
    ids, _, weights = _read(tokenizer, prompts, device, warn, length, windows)
    with adapters_at(lora_scale):
        out = encoder(ids, output_hidden_states=True)
    states, pooled = hidden_states(out, clip_skip + 1, clip_skip), out[0] if out[0].ndim == 2 else None
    if weights is None:
        return states, pooled
    return join_windows(states, weights), None if pooled is None else pooled.unflatten(0, (len(weights), -1))[:, 0]


def hidden_states(out: Any, below: int, clip_skip: int) -> Tensor:
    """The states that lie `below` layers under the last."""
    states = out.hidden_states
    if not 0 <= below < len(states):
        most = len(states) - 1 - (below - clip_skip)
        raise InputError("The encoder has fewer layers.", where="clip_skip", got=clip_skip, expected=f"0 to {most}")
    return states[-(below + 1)]


def guidance_embedding(scale: Tensor, dim: int) -> Tensor:
    """Sinusoids of a guidance scale (B,), for denoisers distilled with guidance: (B, dim) (Meng et al. 2023; Luo et al. 2023)."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = scale[:, None].float() * 1000.0 * rates
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, dim - 2 * half))
