"""Motion modules: transformers across the frames of each pixel, put between the layers of a UNet over pictures (Guo et al. 2023)."""

from __future__ import annotations
import math
from dataclasses import replace
from typing import Any
import torch
from torch import Tensor, nn
from ...errors import ConfigError, InputError
from .attention import BasicTransformerBlock, Conditions
from .resnet import Level

__all__ = ["MotionTransformer", "motion_modules"]


class FramePlaces(nn.Module):
    """Adds sinusoids of a frame's place to (B, F, C), for up to `length` frames."""

    def __init__(self, dim: int, length: int):
        super().__init__()
        rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        phase = torch.arange(length)[:, None] * rates
        self.register_buffer("pe", torch.stack([phase.sin(), phase.cos()], -1).flatten(1)[None, :, :dim])  # (1, length, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.pe.shape[1]:
            expected, fix = f"at most {self.pe.shape[1]}", "Ask for fewer frames, or go through them by windows: enable_free_noise()."
            raise InputError(
                "More frames than the motion modules know places.", where="num_frames", got=x.shape[1], expected=expected, fix=fix
            )
        return x + self.pe[:, : x.shape[1]]


class MotionBlock(BasicTransformerBlock):
    """A transformer block across frames, (BN, F, C), whose attentions both read the frames themselves, and know their places."""

    def __init__(self, dim: int, level: Level, length: int):
        super().__init__(dim, level)
        self.pos_embed = FramePlaces(dim, length)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.fed(self.mixed(x, cond) if cond.windows is None else cond.windows(lambda part: self.mixed(part, cond), x), cond)

    def mixed(self, x: Tensor, cond: Conditions) -> Tensor:
        x = self.attn1(self.pos_embed(self.norm1(x)), attend=cond.attend) + x
        return self.attn2(self.pos_embed(self.norm2(x)), attend=cond.attend) + x


class MotionTransformer(nn.Module):
    """`depth` such blocks over the frames of each pixel of (BF, C, H, W), between projections, around a residual."""

    def __init__(self, channels: int, depth: int, heads: int, groups: int, length: int):
        super().__init__()
        if channels % heads or channels % groups:
            where = "motion_num_attention_heads, motion_norm_num_groups"
            raise ConfigError("Heads and groups do not fit.", where=where, got=f"{heads}, {groups}", expected=f"divisors of {channels}")
        level = Level("down", channels, channels, 1, None, heads=heads)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(MotionBlock(channels, level, length) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        residual, size, across = x, x.shape[-2:], replace(cond, at_once=cond.pixels_at_once)
        videos = x.unflatten(0, (-1, cond.frames)).transpose(1, 2)  # (B, C, F, H, W)
        h = self.proj_in(self.norm(videos).permute(0, 3, 4, 2, 1).flatten(0, 2))  # (BN, F, C)
        for block in self.transformer_blocks:
            h = block(h, across)
        h = self.proj_out(h).unflatten(0, (-1, *size)).permute(0, 3, 4, 1, 2)  # (B, F, C, H, W)
        return h.flatten(0, 1) + residual


def motion_modules(channels: int, layers: int, depth: int | tuple[int, ...], heads: Any, groups: int, length: int) -> nn.ModuleList:
    """One for each residual block of a block; `depth` and `heads` are one for all or one for each."""
    options = [tuple(v) if isinstance(v, (tuple, list)) else (v,) * layers for v in (depth, heads)]
    if any(len(v) != layers for v in options):
        got, where = ", ".join(str(len(v)) for v in options), "layers or heads of motion modules"
        raise ConfigError("This option has one value per layer.", where=where, got=got, expected=layers)
    return nn.ModuleList(MotionTransformer(channels, d, h, groups, length) for d, h in zip(*options))
