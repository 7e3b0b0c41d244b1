"""The blocks that a UNet is made of: one class for the way down, one for the way up, one for the middle.

What a checkpoint calls a block type is a row of a table here (`KINDS`): which attention follows each residual block,
and how the resolution changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import Config
from ...errors import ConfigError
from .k_blocks import KDownBlock, KUpBlock
from .resnet import Downsample2D, FirDownsample2D, FirUpsample2D, ResnetBlock2D, Upsample2D
from .transformer import AddedKVAttention, Conditions, DualTransformer2D, SelfAttention, Transformer2D

__all__ = ["DownBlock", "Level", "MidBlock", "SkipDownBlock", "SkipUpBlock", "UpBlock", "down_block", "quarter", "up_block", "up_levels"]

Attends = Literal["", "self", "transformer", "added_kv", "k"]


def quarter(channels: int) -> int:
    """Groups of a norm where the configuration gives none."""
    return min(channels // 4, 32)


@dataclass(frozen=True)
class Kind:
    """A block type: the attention after each residual block, and how the resolution changes."""

    attention: Attends = ""
    resample: Literal["conv", "resnet", "fir", "k"] = "conv"

    @property
    def takes_context(self) -> bool:
        return self.attention in ("transformer", "added_kv", "k")


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
        norm_num_groups: None groups by four channels, 32 groups at most.
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
    norm_num_groups: int | None = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    dropout: float = 0.0
    downsample_padding: int = 1
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    use_linear_projection: bool = False
    upcast_attention: bool = False
    dual_cross_attention: bool = False
    cross_attention_norm: str | None = None

    @classmethod
    def of(cls, config: Config, index: int, **widths: Any) -> Level:
        """Level number `index` of the way down, with the configuration's options."""
        channels, shared = config.block_out_channels, {f.name for f in fields(cls)} & set(config.names())
        return cls(channels_in=channels[max(index - 1, 0)], channels=channels[index], **{name: config[name] for name in shared}, **widths)

    def resnet(self, channels_in: int, channels: int, **options: Any) -> ResnetBlock2D:
        """A residual block of this level."""
        groups = options.pop("groups", None) or self.norm_num_groups or quarter(channels_in)
        groups_out = self.norm_num_groups or quarter(channels)
        if channels_in % groups or channels % groups_out:
            fits = f"a divisor of {channels_in} and {channels}"
            raise ConfigError("Groups do not fit.", where="norm_num_groups", got=groups, expected=fits)
        return ResnetBlock2D(
            channels_in,
            channels,
            groups=groups,
            groups_out=groups_out,
            temb_channels=self.temb_channels,
            eps=self.norm_eps,
            act_fn=self.act_fn,
            dropout=self.dropout,
            time_embedding_norm=self.resnet_time_scale_shift,
            skip_time_act=self.resnet_skip_time_act,
            output_scale_factor=self.resnet_out_scale_factor,
            **options,
        )

    def attention(self, name: Attends, index: int = 0) -> nn.Module:
        """The attention after residual block number `index`."""
        width, groups = self.channels, self.norm_num_groups or quarter(self.channels)
        if name == "transformer":
            size = (width, self.heads, width // self.heads, self.context_dim)
            if self.dual_cross_attention:
                return DualTransformer2D(*size, groups=groups)
            return Transformer2D(
                *size,
                depth=self.depth if isinstance(self.depth, int) else self.depth[index],
                groups=groups,
                linear=self.use_linear_projection,
                only_cross_attention=self.only_cross,
                upcast_attention=self.upcast_attention,
            )
        common = {"heads": width // self.head_dim, "dim_head": self.head_dim, "bias": True, "residual_connection": True}
        if name == "self":
            common |= {"eps": self.norm_eps, "rescale_output_factor": self.resnet_out_scale_factor}
            return SelfAttention(width, norm_num_groups=self.attention_groups, **common)
        return AddedKVAttention(
            width,
            width,
            norm_num_groups=groups,
            added_kv_proj_dim=self.context_dim,
            only_cross_attention=self.only_cross,
            cross_attention_norm=self.cross_attention_norm,
            **common,
        )

    def attentions(self, name: Attends) -> nn.ModuleList:
        return nn.ModuleList(self.attention(name, i) for i in range(self.layers) if name)

    def suited(self, kind: Kind) -> Level:
        """The same with what the block type decides by itself."""
        if kind.resample == "resnet":
            return replace(self, resample=self.resample and "resnet")
        plain = replace(self, resnet_skip_time_act=False, attention_groups=self.norm_num_groups)
        if kind.resample == "fir":
            return replace(plain, resnet_out_scale_factor=math.sqrt(2), norm_num_groups=None, attention_groups=32)
        resample = self.resample if kind.attention == "self" else self.resample and "conv"
        return replace(plain, resnet_out_scale_factor=1.0, resample=resample)

    def up_widths(self) -> Iterator[tuple[int, int]]:
        """Channels of each residual block's input on the way up, from below and from the skip connection."""
        for i in range(self.layers):
            below = self.channels_in if i == 0 else self.channels
            yield below, self.skip_channels if i == self.layers - 1 else self.channels


class DownBlock(nn.Module):
    """Residual blocks, each with its attention, then half the resolution."""

    def __init__(self, kind: Kind, level: Level):
        super().__init__()
        width, self.takes_context = level.channels, kind.takes_context
        widths = [level.channels_in] + [width] * level.layers
        self.resnets = nn.ModuleList(level.resnet(a, b) for a, b in pairwise(widths))
        self.attentions = level.attentions(kind.attention)
        self.downsamplers = nn.ModuleList()
        if level.resample == "resnet":
            self.downsamplers.append(level.resnet(width, width, resample="down"))
        elif level.resample == "conv":
            self.downsamplers.append(Downsample2D(width, padding=level.downsample_padding))

    def forward(self, x: Tensor, cond: Conditions, residual: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output, and what the way up will receive. `residual` comes from a T2I-Adapter (Mou et al. 2023)."""
        skips: list[Tensor] = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = resnet(x, cond.temb)
            x = x if attention is None else attention(x, cond)
            skips.append(x)
        if residual is not None and self.takes_context:
            x = skips[-1] = x + residual
        for down in self.downsamplers:
            x = down(x, cond.temb) if isinstance(down, ResnetBlock2D) else down(x)
            skips.append(x)  # (B, C, H/2, W/2)
        if residual is not None and not self.takes_context:  # such blocks add it after the change of resolution
            x = skips[-1] = x + residual
        return x, skips


class UpBlock(nn.Module):
    """Residual blocks over the input and a skip connection, each with its attention, then twice the resolution."""

    def __init__(self, kind: Kind, level: Level):
        super().__init__()
        width = level.channels
        self.resnets = nn.ModuleList(level.resnet(a + b, width) for a, b in level.up_widths())
        self.attentions = level.attentions(kind.attention)
        self.upsamplers = nn.ModuleList()
        if level.resample == "resnet":
            self.upsamplers.append(level.resnet(width, width, resample="up"))
        elif level.resample == "conv":
            self.upsamplers.append(Upsample2D(width))

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
        self.resnets = nn.ModuleList(level.resnet(level.channels, level.channels) for _ in range(level.layers + 1))
        self.attentions = level.attentions(attention)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        x = self.resnets[0](x, cond.temb)
        for resnet, attention in zip_longest(self.resnets[1:], self.attentions):
            x = x if attention is None else attention(x, cond)
            x = resnet(x, cond.temb)
        return x


class SkipDownBlock(DownBlock):
    """A block that also adds a smoothed, halved copy of the picture itself (Song et al. 2021, NCSN++)."""

    def __init__(self, kind: Kind, level: Level):
        super().__init__(kind, replace(level, resample=None))
        width = level.channels
        self.resnet_down = self.skip_conv = None
        if level.resample:
            self.resnet_down = level.resnet(width, width, resample=FirDownsample2D(), conv_shortcut=True)
            self.smooth = FirDownsample2D()
            self.skip_conv = nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor, cond: Conditions, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """`picture` (B, 3, H, W) comes back at half the size."""
        x, skips = super().forward(x, cond)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = self.smooth(picture)
            x = self.skip_conv(picture) + self.resnet_down(x, cond.temb)
            skips.append(x)
        return x, skips, picture


class SkipUpBlock(nn.Module):
    """A block that also adds its part to the picture, which grows on the way up. One attention, after all else."""

    def __init__(self, kind: Kind, level: Level):
        super().__init__()
        width, groups = level.channels, quarter(level.channels)
        self.resnets = nn.ModuleList(
            # with attention, only the skip connection's channels are quartered: the checkpoints were trained so
            level.resnet(a + b, width, groups=min(a + b // 4, 32) if kind.attention else quarter(a + b))
            for a, b in level.up_widths()
        )
        self.attentions = nn.ModuleList([level.attention(kind.attention)] if kind.attention else [])
        self.smooth = FirUpsample2D()
        self.resnet_up = self.skip_conv = None
        if level.resample:
            self.resnet_up = level.resnet(width, width, resample=FirUpsample2D(), conv_shortcut=True)
            self.skip_norm = nn.GroupNorm(groups, width, eps=level.norm_eps)
            self.skip_conv = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, skips: list[Tensor], cond: Conditions, picture: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for resnet, skip in zip(self.resnets, reversed(skips), strict=True):
            x = resnet(torch.cat([x, skip], 1), cond.temb)
        for attention in self.attentions:
            x = attention(x, cond)
        picture = None if picture is None else self.smooth(picture)
        if self.resnet_up is not None and self.skip_conv is not None:
            own = self.skip_conv(F.silu(self.skip_norm(x)))  # (B, 3, H, W)
            picture = own if picture is None else picture + own
            x = self.resnet_up(x, cond.temb)
        return x, picture


KINDS: dict[str, Kind] = {
    "{}Block2D": Kind(),
    "Attn{}Block2D": Kind("self"),
    "CrossAttn{}Block2D": Kind("transformer"),
    "Resnet{}sampleBlock2D": Kind("", "resnet"),
    "SimpleCrossAttn{}Block2D": Kind("added_kv", "resnet"),
    "Skip{}Block2D": Kind("", "fir"),
    "AttnSkip{}Block2D": Kind("self", "fir"),
    "K{}Block2D": Kind("", "k"),
    "KCrossAttn{}Block2D": Kind("k", "k"),
}


def block(way: Literal["Down", "Up"], name: str, level: Level) -> nn.Module:
    """The block that a configuration calls `name`. Old checkpoints put "UNetRes" in front."""
    table = {pattern.format(way): kind for pattern, kind in KINDS.items()}
    kind = table.get(name.removeprefix("UNetRes"))
    if kind is None:
        known = ", ".join(table)
        raise ConfigError("No such block type.", where=f"{way.lower()}_block_types", got=name, expected=known)
    special = {"fir": (SkipDownBlock, SkipUpBlock), "k": (KDownBlock, KUpBlock)}
    return special.get(kind.resample, (DownBlock, UpBlock))[way == "Up"](kind, level.suited(kind))


down_block, up_block = partial(block, "Down"), partial(block, "Up")


def up_levels(levels: list[Level], sampler: Literal["conv", "resnet"] = "conv") -> list[Level]:
    """What the way up is built from: the levels of the way down, backwards, with one more residual block each."""
    back = levels[::-1]
    return [
        replace(
            level,
            channels_in=back[max(i - 1, 0)].channels,
            skip_channels=level.channels_in,
            layers=level.layers + 1,
            resample=sampler if i < len(back) - 1 else None,
        )
        for i, level in enumerate(back)
    ]
