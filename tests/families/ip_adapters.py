"""Tiny IP-Adapters with random weights in the layouts of the published files, and the image encoder that belongs to them."""

from __future__ import annotations
from pathlib import Path
from typing import Any
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from darkroom.models.ip_adapter import attention_layers, readers

__all__ = ["FACE", "KINDS", "POOLED", "SEEN", "STATES", "adapter", "encoder", "flat", "write"]

KINDS = ("base", "plus", "full face", "FaceID", "FaceID plus")
POOLED, STATES, SEEN, FACE, TOKENS = 24, 32, 17, 20, 4  # widths of what the encoder says, its states and their number, of a face; tokens


def encoder() -> Any:
    torch.manual_seed(7)
    size = dict(hidden_size=STATES, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=POOLED)).eval()


def projection(kind: str, dim: int, real: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that make tokens `dim` wide; `real` ones are as wide as those for Stable Diffusion 1.5."""
    pooled, states, inner, latents, width = (1024, 1280, 768, 16, 768) if real else (POOLED, STATES, 64, TOKENS, 24)

    def linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}

    def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def resampler(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        found = {**linear("proj_in", width, states), **linear("proj_out", dim, width), **norm("norm_out", dim)}
        for i in range(4):
            found |= {**norm(f"layers.{i}.0.norm1", width), **norm(f"layers.{i}.0.norm2", width), **norm(f"layers.{i}.1.0", width)}
            found |= {f"layers.{i}.0.to_q.weight": (inner, width), f"layers.{i}.0.to_kv.weight": (2 * inner, width)}
            found |= {f"layers.{i}.0.to_out.weight": (width, inner)}
            found |= {f"layers.{i}.1.1.weight": (4 * width, width), f"layers.{i}.1.3.weight": (width, 4 * width)}
        return {prefix + name: shape for name, shape in found.items()}

    face = {**linear("proj.0", 2 * FACE, FACE), **linear("proj.2", TOKENS * dim, 2 * FACE), **norm("norm", dim)}
    return {
        "base": {**linear("proj", TOKENS * dim, pooled), **norm("norm", dim)},
        "plus": {"latents": (1, latents, width), **resampler("", width)},
        "full face": {**linear("proj.0", states, states), **linear("proj.2", dim, states), **norm("proj.3", dim)},
        "FaceID": face,
        "FaceID plus": {**face, **resampler("perceiver_resampler.", dim)},
    }[kind]


def adapter(unet: Any, kind: str = "base", *, lora: bool = False, real: bool = False, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The nested dictionaries of a published file, for a darkroom UNet; with `lora` those of its layers, too."""
    g = torch.Generator().manual_seed(seed)
    layers = readers(unet)

    def random(name: str, shape: tuple[int, ...]) -> Tensor:
        x = torch.randn(shape, generator=g)
        return x * 0.1 + 1 if len(shape) == 1 and name.endswith("weight") else x * (1.5 / shape[-1] ** 0.5 if len(shape) > 1 else 0.1)

    numbered = {f"{2 * i + 1}": layer for i, layer in enumerate(layers)}
    read = {f"{n}.to_{x}_ip.weight": (layer.inner, layer.context) for n, layer in numbered.items() for x in "kv"}
    if lora:
        for i, (_, m) in enumerate(attention_layers(unet)):
            for name, part in (("to_q", m.to_q), ("to_k", m.to_k), ("to_v", m.to_v), ("to_out", m.to_out[0])):
                read |= {f"{i}.{name}_lora.down.weight": (4, part.in_features), f"{i}.{name}_lora.up.weight": (part.out_features, 4)}
    shapes = {"image_proj": projection(kind, layers[0].context, real), "ip_adapter": read}
    return {part: {name: random(name, shape) for name, shape in own.items()} for part, own in shapes.items()}


def flat(tensors: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, own in tensors.items() for name, tensor in own.items()}


def write(folder: Path, tensors: dict[str, dict[str, Tensor]], name: str = "ip-adapter.safetensors", image_encoder: bool = True) -> Path:
    """A repository: the file in `models`, beside it the encoder."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    if name.endswith(".bin"):
        torch.save(tensors, folder / "models" / name)
    else:
        save_file(flat(tensors), folder / "models" / name)
    if image_encoder:
        encoder().save_pretrained(folder / "models/image_encoder")
    return folder
