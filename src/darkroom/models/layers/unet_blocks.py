"""The blocks that a UNet is made of: residual blocks with attention, then another resolution.

What a checkpoint calls a block type is a row of a table here (`KINDS`): which attention follows each residual block, and how the
resolution changes.
"""

from __future__ import annotations
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from typing import Any, Literal
import torch
from torch import Tensor, nn
from ...config import Config
from ...core.windows import in_parts
from ...errors import ConfigError, InputError
from ..base import choose
from .attention import AddedKVAttention, Conditions, DualTransformer2D, SelfAttention, Transformer2D
from .freeu import FreeU
from .k_blocks import KAttention, KDownBlock, KUpBlock
from .resnet import Level, Resample2D, ResnetBlock2D, Way
from .skip_blocks import SkipDownBlock, SkipUpBlock

__all__ = ["Attends", "Block", "block", "down_levels", "middle_block", "per_block", "up_levels"]

Attends = type[SelfAttention | Transformer2D | KAttention] | None  # the attention after a residual block
KINDS: dict[str, tuple[Attends, Literal["conv", "resnet", "k", "fir"]]] = {
    "{}Block2D": (None, "conv"),
    "Attn{}Block2D": (SelfAttention, "conv"),
    "CrossAttn{}Block2D": (Transformer2D, "conv"),
    "Resnet{}sampleBlock2D": (None, "resnet"),
    "SimpleCrossAttn{}Block2D": (AddedKVAttention, "resnet"),
    "K{}Block2D": (None, "k"),
    "KCrossAttn{}Block2D": (KAttention, "k"),
    "Skip{}Block2D": (None, "fir"),
    "AttnSkip{}Block2D": (SelfAttention, "fir"),
}
SPECIAL: dict[tuple[str, Way], type[nn.Module]] = {
    ("k", "down"): KDownBlock, ("k", "up"): KUpBlock, ("fir", "down"): SkipDownBlock, ("fir", "up"): SkipUpBlock,
}  # fmt: skip
READS_CONTEXT = (Transformer2D, AddedKVAttention, KAttention)


class Block(nn.Module):
    """Residual blocks, each with its attention, then half or twice the resolution.
    `bare` residual blocks at the end have no attention. With skip connections each residual block receives one beside its input.
    """

    picture = False  # whether a small copy of the picture goes through, too
    freeu: FreeU | None = None  # what is done to the input and to skip connections before they are joined
    after: tuple[str, ...] = ("attentions",)  # the lists of layers of which one each follows a residual block, in order
    Resnet: type[nn.Module] = ResnetBlock2D

    def __init__(self, attention: Attends, level: Level, bare: int = 0):
        super().__init__()
        self.reads_context = attention in READS_CONTEXT
        make: Any = DualTransformer2D if attention is Transformer2D and level.dual_cross_attention else attention
        same = [level.channels] * (level.layers - 1)
        skips = [*same, level.skip_channels] if level.skip_channels else [0] * level.layers
        self.resnets = nn.ModuleList(self.Resnet(level, a + b) for a, b in zip([level.channels_in, *same], skips))
        count = level.layers - bare if attention else 0
        depths = [level.depth] * count if isinstance(level.depth, int) else [level.depth[i] for i in range(count)]
        self.attentions = nn.ModuleList(make(replace(level, depth=depth)) for depth in depths)
        self.downsamplers, self.upsamplers = self._resamplers(level, "down"), self._resamplers(level, "up")

    @staticmethod
    def _resamplers(level: Level, way: Way) -> nn.ModuleList:
        if level.resample is None or level.way != way:
            return nn.ModuleList()
        if level.resample == "resnet":
            return nn.ModuleList([ResnetBlock2D(level, level.channels, way)])
        return nn.ModuleList([Resample2D(level.channels, way, padding=level.downsample_padding)])

    def _layers(self, x: Tensor, cond: Conditions, skips: Sequence[Tensor] = (), made: list[Tensor] | None = None) -> Tensor:
        """At one resolution, (B, C, H, W). `made` receives what comes out behind each residual block and what follows it."""
        for resnet, skip, *layers in zip_longest(self.resnets, reversed(skips), *(getattr(self, name) for name in self.after)):
            if skip is not None and self.freeu is not None:
                x, skip = self.freeu(x, skip)
            x = in_parts(resnet, cond.at_once, x if skip is None else torch.cat([x, skip], 1), cond.temb)
            for layer in layers:
                x = x if layer is None else layer(x, cond)
            if made is not None:
                made.append(x)
        return x

    def _resized(self, x: Tensor, cond: Conditions, size: Sequence[int] | None = None) -> Tensor:
        for layer in (*self.downsamplers, *self.upsamplers):
            x = layer(x, cond.temb, size) if isinstance(layer, ResnetBlock2D) else layer(x, size)
        return x  # (B, C, H/2, W/2) or (B, C, 2H, 2W)

    def forward(self, x: Tensor, cond: Conditions, skips: Sequence[Tensor] = (), size: Sequence[int] | None = None) -> Tensor:
        """`skips` are as the way down made them, the last one is used first. `size` is that of the output, if it is not twice the input's."""
        return self._resized(self._layers(x, cond, skips), cond, size)


class DownBlock(Block):
    """A block whose feature maps the way up receives."""

    def forward(self, x: Tensor, cond: Conditions, residual: Tensor | None = None) -> list[Tensor]:  # type: ignore[override]
        """What the way up will receive, the output last. `residual` comes from a T2I-Adapter (Mou et al. 2023)."""
        skips: list[Tensor] = []
        self._layers(x, cond, made=skips)
        if residual is not None and self.reads_context:
            skips[-1] = _joined(skips[-1], residual)
        if self.downsamplers:
            skips.append(self._resized(skips[-1], cond))  # (B, C, H/2, W/2)
        if residual is not None and not self.reads_context:  # such blocks add it after the change of resolution
            skips[-1] = _joined(skips[-1], residual)
        return skips


def _joined(x: Tensor, residual: Tensor) -> Tensor:
    """A feature map (B, C, H, W) and what an adapter adds to it."""
    if residual.shape[1:] != x.shape[1:]:
        fix = "A T2I-Adapter is made for one kind of network: adapter_type and channels are in its configuration."
        what, where = "What an adapter adds does not fit this network.", "down_intrablock_additional_residuals"
        raise InputError(what, where=where, got=tuple(residual.shape[1:]), expected=tuple(x.shape[1:]), fix=fix)
    return x + residual


def middle_block(attention: Attends, level: Level, layers: int = 2, make: type[Block] = Block) -> Block:
    """A residual block, then `layers - 1` times attention and another residual block, at the width of `level`."""
    return make(attention, replace(level, channels_in=level.channels, layers=layers, resample=None), bare=1)


def block(name: str, level: Level) -> nn.Module:
    """The block that a configuration calls `name`. Old checkpoints put "UNetRes" in front."""
    way, absent = level.way.title(), "fir" if level.context_dim else "k"  # blocks that the network of this level could not call
    kinds = {pattern.format(way): kind for pattern, kind in KINDS.items() if kind[1] != absent}
    known = {name: kind for name, kind in kinds.items() if level.context_dim or kind[0] not in READS_CONTEXT}
    attention, resample = choose(f"{level.way}_block_types", str(name).removeprefix("UNetRes"), known)
    if special := SPECIAL.get((resample, level.way)):
        return special(attention, level)
    if attention is not SelfAttention:  # the only one whose resampling is an option of the network
        level = replace(level, resample=level.resample and resample)
    if resample == "conv":
        level = replace(level, resnet_skip_time_act=False, resnet_out_scale_factor=1.0)
    return (DownBlock if level.way == "down" else Block)(attention, level)


def per_block(config: Config, field: str) -> tuple[Any, ...]:
    """An option with one value per block, or one for all of them."""
    value, count = config[field], len(config.block_out_channels)
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise ConfigError("This option has one value per block.", where=field, got=len(values), expected=f"{count}, as block_out_channels")
    return values


def down_levels(config: Config, **options: Any) -> list[Level]:
    """What the way down is built from: the configuration's options, and others, one for all levels or a tuple of one for each."""
    shared = {f.name: config[f.name] for f in fields(Level) if f.name in config.names()}
    shared |= {"way": "down", "resample": "conv", "attention_groups": config.norm_num_groups}
    options["layers"] = per_block(config, "layers_per_block")
    before, levels = config.block_out_channels[0], []
    for i, width in enumerate(config.block_out_channels):
        own = {name: value[i] if isinstance(value, tuple) else value for name, value in options.items()}
        levels.append(Level(**shared | own | {"channels_in": before, "channels": width}))
        before = width
    return [*levels[:-1], replace(levels[-1], resample=None)]


def up_levels(levels: list[Level], resample: str = "conv") -> list[Level]:
    """What the way up is built from: the levels of the way down, backwards, with one more residual block each."""
    pairs = zip([levels[-1], *levels[:0:-1]], reversed(levels))
    ups = [
        replace(b, way="up", channels_in=a.channels, skip_channels=b.channels_in, layers=b.layers + 1, resample=resample) for a, b in pairs
    ]
    return [*ups[:-1], replace(ups[-1], resample=None)]
