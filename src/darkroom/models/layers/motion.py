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
from .unet_blocks import Block

__all__ = ["MotionTransformer", "TemporalConvs", "insert_motion", "motion_modules", "per_frame"]

LONGEST = 4096  # frames: places are made in memory, whatever a file's configuration asks for


class FramePlaces(nn.Module):
    """Adds sinusoids of a frame's place to (B, F, C), for up to `length` frames."""

    computed = ("pe",)

    def __init__(self, dim: int, length: int):
        super().__init__()
        if length > LONGEST:
            expected = f"at most {LONGEST} frames"
            raise ConfigError("Motion modules for no such videos.", where="motion_max_seq_length", got=length, expected=expected)
        self.register_buffer("pe", torch.empty(1, length, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _, length, dim = self.pe.shape
        rates = torch.exp(torch.arange(0, dim, 2, device=self.pe.device) * (-math.log(10000.0) / dim))
        phase = torch.arange(length, device=self.pe.device)[:, None] * rates
        self.pe.copy_(torch.stack([phase.sin(), phase.cos()], -1).flatten(1)[None, :, :dim])

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > self.pe.shape[1]:
            expected, fix = f"at most {self.pe.shape[1]}", "Ask for fewer frames, or go through them by windows: enable_free_noise()."
            raise InputError(
                "More frames than the motion modules know places.", where="num_frames", got=x.shape[1], expected=expected, fix=fix
            )
        return x + self.pe[:, : x.shape[1]]


class MotionBlock(BasicTransformerBlock):
    """A transformer block across frames, (BN, F, C), whose attentions, two or one, read the frames themselves, and know `length` places."""

    def __init__(self, dim: int, level: Level, length: int | None, double: bool):
        super().__init__(dim, level)
        self.pos_embed = nn.Identity() if length is None else FramePlaces(dim, length)
        if not double:
            self.norm2 = self.attn2 = None  # type: ignore[assignment]

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        return self.fed(self.mixed(x, cond) if cond.windows is None else cond.windows(lambda part: self.mixed(part, cond), x), cond)

    def mixed(self, x: Tensor, cond: Conditions) -> Tensor:
        x = self.attn1(self.pos_embed(self.norm1(x)), attend=cond.attend) + x
        return x if self.attn2 is None else self.attn2(self.pos_embed(self.norm2(x)), attend=cond.attend) + x


class MotionTransformer(nn.Module):
    """`depth` such blocks over the frames of each pixel of (BF, C, H, W), between projections, around a residual.
    `inner` is the width between the projections, by default that of the input.
    """

    def __init__(
        self, channels: int, depth: int, heads: int, groups: int, length: int | None, inner: int | None = None, double: bool = True
    ):  # fmt: skip
        super().__init__()
        inner = inner or channels
        if not heads or inner % heads or not groups or channels % groups:
            where = "heads and groups of layers across frames"
            raise ConfigError("They do not fit.", where=where, got=f"{heads}, {groups}", expected=f"divisors of {inner} and {channels}")
        level = Level("down", inner, inner, 1, None, heads=heads)
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(MotionBlock(inner, level, length, double) for _ in range(depth))
        self.proj_out = nn.Linear(inner, channels)
        for p in self.proj_out.parameters():
            nn.init.zeros_(p)  # untrained it changes nothing

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        residual, size, across = x, x.shape[-2:], replace(cond, at_once=cond.pixels_at_once)
        videos = x.unflatten(0, (-1, cond.frames)).transpose(1, 2)  # (B, C, F, H, W)
        h = self.proj_in(self.norm(videos).permute(0, 3, 4, 2, 1).flatten(0, 2))  # (BN, F, C)
        for block in self.transformer_blocks:
            h = block(h, across)
        h = self.proj_out(h).unflatten(0, (-1, *size)).permute(0, 3, 4, 1, 2)  # (B, F, C, H, W)
        return h.flatten(0, 1) + residual


class TemporalConvs(nn.Module):
    """Four convolutions across frames around a residual, over (BF, C, H, W) (Wang et al. 2023, ModelScope). The last begins as zero."""

    def __init__(self, channels: int, groups: int, dropout: float = 0.1):
        super().__init__()
        for i in range(1, 5):
            drop, conv = [nn.Dropout(dropout)] * (i > 1), nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            self.add_module(f"conv{i}", nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), *drop, conv))
        for p in conv.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        h = x.unflatten(0, (-1, cond.frames)).transpose(1, 2)  # (B, C, F, H, W)
        for convolution in self.children():
            h = convolution(h)
        return x + h.transpose(1, 2).flatten(0, 1)


def motion_modules(
    channels: int, layers: int, depth: int | tuple[int, ...], heads: Any, groups: int, length: int, double: bool = True
) -> nn.ModuleList:
    """One for each residual block of a block; `depth` and `heads` are one for all or one for each."""
    options = [tuple(v) if isinstance(v, (tuple, list)) else (v,) * layers for v in (depth, heads)]
    if any(len(v) != layers for v in options):
        got, where = ", ".join(str(len(v)) for v in options), "layers or heads of motion modules"
        raise ConfigError("This option has one value per layer.", where=where, got=got, expected=layers)
    return nn.ModuleList(MotionTransformer(channels, d, h, groups, length, double=double) for d, h in zip(*options))


def insert_motion(block: Block, modules: nn.ModuleList | None) -> None:
    """Put motion modules behind the other layers of a block, in place of those that are there."""
    block._modules.pop("motion_modules", None)
    block.after = ("attentions",)
    if modules is not None:
        block.motion_modules, block.after = modules, ("attentions", "motion_modules")


def per_frame(cond: Conditions, rows: int, frames: int) -> Conditions:
    """Conditions of `rows` videos as those of all their frames; context and mask may be that already."""
    every = [x if x is None or len(x) == rows * frames else x.repeat_interleave(frames, 0) for x in (cond.context, cond.mask)]
    temb = None if cond.temb is None else cond.temb.repeat_interleave(frames, 0)
    return replace(cond, temb=temb, context=every[0], mask=every[1], frames=frames)
