"""The blocks that a UNet is made of: one class for the way down, one for the way up, one for the middle.

What a checkpoint calls a block type is a row of a table here (`KINDS`): which attention follows each residual block, and how the
resolution changes.
"""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any, Literal
import torch
from torch import Tensor, nn
from ...config import Config
from ...errors import ConfigError
from ..base import choose
from .attention import AddedKVAttention, Conditions, SelfAttention, Transformer2D
from .resnet import Downsample2D, ResnetBlock2D, Upsample2D

__all__ = ["Level", "MidBlock", "down_block", "down_levels", "per_block", "up_block", "up_levels"]

Attends = Literal["", "self", "transformer", "added_kv"]
READS_CONTEXT = ("transformer", "added_kv")


@dataclass(frozen=True)
class Level:
    """Widths and options of the blocks at one resolution. Options carry the names of the configuration's keys.

    Args:
        channels: of the block's output; `channels_in` of its input.
        skip_channels: of the last skip connection that a block on the way up receives.
        temb_channels: of the timestep embedding.
        layers: residual blocks.
        resample: how the resolution changes at the end, None where it does not.
        heads: attention heads of transformers; other attentions have `channels // head_dim`.
        depth: transformer blocks for each residual block.
        attention_groups: of the norm in self-attention; None for no norm.
    """

    channels_in: int
    channels: int
    temb_channels: int
    layers: int
    resample: Literal["conv", "resnet"] | None
    skip_channels: int = 0
    heads: int = 1
    head_dim: int = 8
    depth: int | tuple[int, ...] = 1
    context_dim: int | None = None
    only_cross: bool = False
    attention_groups: int | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    dropout: float = 0.0
    downsample_padding: int = 1
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    use_linear_projection: bool = False
    upcast_attention: bool = False
    cross_attention_norm: str | None = None

    def resnet(self, channels_in: int, resample: str | None = None) -> ResnetBlock2D:
        """A residual block of this level."""
        groups = self.norm_num_groups
        if not groups or channels_in % groups or self.channels % groups:
            fits = f"a divisor of {channels_in} and {self.channels}"
            raise ConfigError("Groups do not fit.", where="norm_num_groups", got=str(groups), expected=fits)
        return ResnetBlock2D(
            channels_in,
            self.channels,
            groups=groups,
            temb_channels=self.temb_channels,
            eps=self.norm_eps,
            act_fn=self.act_fn,
            dropout=self.dropout,
            time_embedding_norm=self.resnet_time_scale_shift,
            skip_time_act=self.resnet_skip_time_act,
            output_scale_factor=self.resnet_out_scale_factor,
            resample=resample,
        )

    def attentions(self, name: Attends) -> nn.ModuleList:
        """The attention of that name after each residual block, or none."""
        return nn.ModuleList(self._attention(name, i) for i in range(self.layers) if name)

    def _attention(self, name: Attends, index: int) -> nn.Module:
        width, groups = self.channels, self.norm_num_groups
        if name == "transformer":
            options = {"only_cross_attention": self.only_cross, "upcast_attention": self.upcast_attention}
            depth = self.depth if isinstance(self.depth, int) else self.depth[index]
            options |= {"depth": depth, "groups": groups, "linear": self.use_linear_projection}
            return Transformer2D(width, self.heads, self.context_dim, **options)
        size = {"heads": width // self.head_dim, "dim_head": self.head_dim, "bias": True, "residual_connection": True}
        if name == "self":
            options = {"eps": self.norm_eps, "rescale_output_factor": self.resnet_out_scale_factor}
            return SelfAttention(width, None, norm_num_groups=self.attention_groups, **size, **options)
        options = {"only_context": self.only_cross, "context_norm": self.cross_attention_norm}
        return AddedKVAttention(width, self.context_dim, norm_num_groups=groups, **size, **options)

    def resampler(self, way: Literal["down", "up"]) -> nn.ModuleList:
        """What changes the resolution at the end, if anything does."""
        layers: list[nn.Module] = []
        if self.resample == "resnet":
            layers.append(self.resnet(self.channels, way))
        elif self.resample == "conv":
            layers.append(Upsample2D(self.channels) if way == "up" else Downsample2D(self.channels, padding=self.downsample_padding))
        return nn.ModuleList(layers)


class DownBlock(nn.Module):
    """Residual blocks, each with its attention, then half the resolution."""

    def __init__(self, attention: Attends, level: Level):
        super().__init__()
        self.reads_context = attention in READS_CONTEXT
        self.resnets = nn.ModuleList(level.resnet(level.channels if i else level.channels_in) for i in range(level.layers))
        self.attentions = level.attentions(attention)
        self.downsamplers = level.resampler("down")

    def forward(self, x: Tensor, cond: Conditions, residual: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output, and what the way up will receive. `residual` comes from a T2I-Adapter (Mou et al. 2023)."""
        skips: list[Tensor] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
            skips.append(x)
        if residual is not None and self.reads_context:
            x = skips[-1] = x + residual
        for down in self.downsamplers:
            x = down(x, cond.temb) if isinstance(down, ResnetBlock2D) else down(x)
            skips.append(x)  # (B, C, H/2, W/2)
        if residual is not None and not self.reads_context:  # such blocks add it after the change of resolution
            x = skips[-1] = x + residual
        return x, skips


class UpBlock(nn.Module):
    """Residual blocks over the input and a skip connection, each with its attention, then twice the resolution."""

    def __init__(self, attention: Attends, level: Level):
        super().__init__()
        same = [level.channels] * (level.layers - 1)
        below, across = [level.channels_in, *same], [*same, level.skip_channels]
        self.resnets = nn.ModuleList(level.resnet(a + b) for a, b in zip(below, across))
        self.attentions = level.attentions(attention)
        self.upsamplers = level.resampler("up")

    def forward(self, x: Tensor, skips: list[Tensor], cond: Conditions, size: Sequence[int] | None = None) -> Tensor:
        """`skips` are as the way down made them, the last one is used first. `size` is that of the output."""
        for resnet, attention, skip in zip_longest(self.resnets, self.attentions, reversed(skips)):
            x = resnet(torch.cat([x, skip], 1), cond.temb)
            x = x if attention is None else attention(x, cond)
        for up in self.upsamplers:
            x = up(x, cond.temb, size) if isinstance(up, ResnetBlock2D) else up(x, size)  # (B, C, 2H, 2W)
        return x


class MidBlock(nn.Module):
    """A residual block, then `layers` times attention and another residual block."""

    def __init__(self, attention: Attends, level: Level):
        super().__init__()
        self.resnets = nn.ModuleList(level.resnet(level.channels) for _ in range(level.layers + 1))
        self.attentions = level.attentions(attention)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        x = self.resnets[0](x, cond.temb)
        for resnet, attention in zip_longest(self.resnets[1:], self.attentions):
            x = x if attention is None else attention(x, cond)
            x = resnet(x, cond.temb)
        return x


KINDS: dict[str, tuple[Attends, Literal["conv", "resnet"]]] = {
    "{}Block2D": ("", "conv"),
    "Attn{}Block2D": ("self", "conv"),
    "CrossAttn{}Block2D": ("transformer", "conv"),
    "Resnet{}sampleBlock2D": ("", "resnet"),
    "SimpleCrossAttn{}Block2D": ("added_kv", "resnet"),
}


def _block(way: Literal["Down", "Up"], name: str, level: Level) -> nn.Module:
    """The block that a configuration calls `name`. Old checkpoints put "UNetRes" in front."""
    known = {pattern.format(way): kind for pattern, kind in KINDS.items() if level.context_dim or kind[0] not in READS_CONTEXT}
    attention, resample = choose(f"{way.lower()}_block_types", str(name).removeprefix("UNetRes"), known)
    changes: dict[str, Any] = {}
    if attention != "self":  # the only blocks whose resampling is an option of the network
        changes["resample"] = level.resample and resample
    if resample == "conv":
        changes |= {"resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "attention_groups": level.norm_num_groups}
    return (DownBlock if way == "Down" else UpBlock)(attention, replace(level, **changes))


down_block, up_block = partial(_block, "Down"), partial(_block, "Up")


def per_block(config: Config, field: str) -> tuple[Any, ...]:
    """An option with one value per block, or one for all of them."""
    value, count = config[field], len(config.block_out_channels)
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        fits = f"{count}, as block_out_channels"
        raise ConfigError("This option has one value per block.", where=field, got=len(value), expected=fits)
    return value


def down_levels(config: Config, temb_channels: int, resample: str = "conv", **each: Sequence[Any]) -> list[Level]:
    """What the way down is built from, with the configuration's options; `each` has one value for every level."""
    shared = {f.name: config[f.name] for f in fields(Level) if f.name in config.names()} | {"temb_channels": temb_channels}
    widths = (config.block_out_channels[0], *config.block_out_channels)
    own = ({name: values[i] for name, values in each.items()} for i in range(len(widths) - 1))
    levels = [Level(a, b, resample=resample, **shared, **options) for (a, b), options in zip(pairwise(widths), own)]
    return [*levels[:-1], replace(levels[-1], resample=None)]


def up_levels(levels: list[Level], resample: str = "conv") -> list[Level]:
    """What the way up is built from: the levels of the way down, backwards, with one more residual block each."""
    below, last = [levels[-1], *levels[:0:-1]], levels[0]
    return [
        replace(
            level,
            channels_in=before.channels,
            skip_channels=level.channels_in,
            layers=level.layers + 1,
            resample=None if level is last else resample,
        )
        for before, level in zip(below, reversed(levels))
    ]
